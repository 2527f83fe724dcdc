"""Detectors in pure torch: no Lightning, no data set, no metric."""
