"""Hand-made features at the key points of a cloud: coordinates, FPFH, or both."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, Self, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from anomaly3d.errors import InputError, check_choice, check_range
from anomaly3d.models.components.fpfh import fpfh
from anomaly3d.models.components.scoring import Propagate, Protocol
from anomaly3d.ops.stages import stage
from anomaly3d.ops.voxel import voxel_filter

PointFeature = Literal["raw", "fpfh", "fpfh_raw"]
Sampling = Literal["voxel", "file"]

_OF_FPFH = ("normal_radius", "feature_radius", "feature_neighbours")
_PUBLISHED_NEIGHBOURS = 100
FEW = 50  # key points; fewer tell nothing of a surface


@dataclass(frozen=True)
class PointFeatures:
    """Key points of a cloud and their features.

    Attributes:
        kind: `raw` coordinates, `fpfh`, or `fpfh_raw`, both side by side.
        sampling: `voxel`, key points are the centroids of a voxel filter; `file`, they are all points of the file.
        in_radii: whether `voxel` is a share of a radius, and coordinates are in units of it; otherwise of the file.
        voxel: edge of the voxel filter, which makes clouds of different density alike; the unit of the two radii.
        normal_radius: neighbourhood of a normal, in voxels, of at most 30 points.
        feature_radius: neighbourhood of a histogram, in voxels.
        feature_neighbours: most points in it.
        raw_weight: factor of the coordinates beside FPFH.
        orient: turn normals to the side on which the surface bulges (`fpfh.fpfh`).
    """

    kind: PointFeature
    sampling: Sampling
    in_radii: bool
    voxel: float
    normal_radius: float
    feature_radius: float
    feature_neighbours: int
    raw_weight: float
    orient: bool

    def __post_init__(self) -> None:
        check_choice(get_args(PointFeature), feature=self.kind)
        check_range(1e-9, inf, voxel_size=self.voxel, normal_radius=self.normal_radius, raw_weight=self.raw_weight)
        check_range(1e-9, inf, feature_radius=self.feature_radius)
        check_range(1, inf, feature_neighbours=self.feature_neighbours)

    @classmethod
    def preset(
        cls,
        kind: PointFeature,
        protocol: Protocol,
        voxel: float | None,
        normal_radius: float,
        feature_radius: float,
        feature_neighbours: int = _PUBLISHED_NEIGHBOURS,
        raw_weight: float | None = None,
    ) -> Self:
        """The choices of a protocol.

        `paper`: features at every point of the file, in whose unit (mm) the voxel is 0.5; it only sets the radii [code
        of Real3D-AD]. Coordinates beside FPFH weigh the root of 11: a function there repeats them 11 times, and squares
        add up, but no script calls it. Other `feature_neighbours` than the published 100 are warned of.

        `strict`: key points of a voxel filter, 0.03 and 165 in units of the cloud's radius [ours]; of 15, 50 and 165
        the last did best in points on validation clouds, 50 in objects (`benchmarks/results/classical.md`). Of
        voxels of 0.02, 0.03, 0.045 and 0.07 the second did best on scans and on one set of complete clouds, the third
        on another. A radius that a stray point may double is no good unit: remove such points first.
        """
        strict = protocol == "strict"
        if not strict and kind != "raw" and feature_neighbours != _PUBLISHED_NEIGHBOURS:
            warnings.warn(
                f"feature_neighbours={feature_neighbours} under protocol paper, where {_PUBLISHED_NEIGHBOURS} are "
                "published; recipes for Real3D-AD set fewer for protocol strict",
                stacklevel=2,
            )
        return cls(
            kind,
            "voxel" if strict else "file",
            strict,
            (0.03 if strict else 0.5) if voxel is None else voxel,
            normal_radius,
            feature_radius,
            feature_neighbours,
            (165.0 if strict else 11**0.5) if raw_weight is None else raw_weight,
            orient=strict,
        )

    def settings(self) -> dict[str, Any]:
        """What decides the features, by the names that detectors give it."""
        raw_weight = {"raw_weight": self.raw_weight} if self.kind == "fpfh_raw" else {}
        radii = {} if self.kind == "raw" else {k: getattr(self, k) for k in _OF_FPFH}
        return {"feature": self.kind, "sampling": self.sampling, "voxel_size": self.voxel, **radii, **raw_weight}

    @property
    def propagate(self) -> Propagate:
        """How scores come from the key points to all points: from the nearest under `file` [code], as published."""
        return "nearest" if self.sampling == "file" else "inverse_distance"

    def keypoints(self, xyz: Float[Tensor, "N 3"], radius: float) -> Float[Tensor, "K 3"]:
        """Centroids of the occupied voxels, in the unit of `xyz`; or `xyz` itself (the same tensor) under `file`.

        Raises:
            InputError: as `key_points`; under `file` only for histograms, whose radii are lengths, too.
        """
        if self.sampling == "file" and self.kind == "raw":
            return xyz
        filtered = key_points(xyz, self.voxel * self._unit(radius), self.in_radii)
        return filtered if self.sampling == "voxel" else xyz

    @stage("point features")
    def __call__(
        self, keypoints: Float[Tensor, "K 3"], centre: Float[Tensor, " 3"], radius: float
    ) -> Float[Tensor, "K D"]:
        """Features of the key points of an object with this centre and radius."""
        unit = self._unit(radius)
        raw = ((keypoints - centre) / unit).float()
        if self.kind == "raw":
            return raw
        voxel = self.voxel * unit
        histograms = fpfh(
            keypoints,
            self.feature_radius * voxel,
            self.feature_neighbours,
            normal_radius=self.normal_radius * voxel,
            orient=self.orient,
        )
        return histograms if self.kind == "fpfh" else torch.cat([histograms, self.raw_weight * raw], dim=1)

    def _unit(self, radius: float) -> float:
        return radius if self.in_radii else 1.0


def every(stride: int, rows: Shaped[Tensor, "N D"]) -> Shaped[Tensor, "n D"]:
    """Rows 0, `stride`, 2 `stride` and so on: N // `stride` of them [code of Real3D-AD], the first at least [ours]."""
    return rows[: max(1, len(rows) // stride) * stride : stride]


@stage("voxel filter")
def key_points(xyz: Float[Tensor, "N 3"], voxel: float, in_radii: bool) -> Float[Tensor, "K 3"]:
    """Centroids of the occupied voxels.

    Raises:
        InputError: next to nothing is left, as where `paper` meets files in another unit than its own, or a point far
            from all others makes the cloud's radius (`in_radii`) meaningless.
    """
    points = voxel_filter(xyz, voxel)
    if len(points) < min(FEW, len(xyz) / 10):
        why = (
            "it is in units of the cloud's radius: does a point lie far from all others? Remove it"
            if in_radii
            else "protocol paper takes it in the unit of the file, for parts in mm: give a smaller one, or take strict"
        )
        raise InputError(
            f"voxel_size: an edge of {voxel:.3g} leaves {len(points)} of {len(xyz)} points; {why} "
            "(--model.detector.init_args.voxel_size)"
        )
    return points
