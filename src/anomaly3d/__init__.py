"""anomaly3d: unsupervised anomaly detection in 3D point clouds.

Importing the package imports nothing heavy; take what you need from its modules.
"""

__version__ = "0.1.0"
