"""An endless stream of random shapes from a seed, to pre-train a backbone on.

outlines.py (flat) -> solids.py -> details.py -> shapes.py -> deform.py -> sampling.py -> stream.py, probe.py

The shapes are generic on purpose: none is built like a category of a benchmark.
"""
