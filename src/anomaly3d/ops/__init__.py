"""Geometry and sequence primitives: each has a plain-torch specification and faster paths behind the same function."""
