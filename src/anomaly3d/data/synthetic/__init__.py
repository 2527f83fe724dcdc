"""A data set of industrial parts and defects, made from a seed.

shapes/ (part within tolerances) -> surface.py (dense points) -> defects/ -> scan.py -> cloud.py -> generate.py
"""
