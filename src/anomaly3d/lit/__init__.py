"""Lightning around the detectors: module, callbacks and command line."""
