"""Settings that no model can have are refused in one line that names them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from anomaly3d.errors import InputError, check_range
from anomaly3d.models.base import Detector
from anomaly3d.models.btf import BTF
from anomaly3d.models.mamba3dad import Mamba3dAD
from anomaly3d.models.mc3d_ad import MC3DAD
from anomaly3d.models.patchcore import PatchCore
from anomaly3d.models.patchcore_point_mae import PatchCorePointMAE
from anomaly3d.models.reg3d_ad import Reg3DAD
from anomaly3d.models.sedir import SeDiR
from anomaly3d.models.simple3d import Simple3D
from anomaly3d.models.template_distance import TemplateDistance


@pytest.mark.parametrize(
    ("detector", "setting", "value"),
    [
        (Mamba3dAD, "heads", 7),
        (Mamba3dAD, "slots", 0),
        (Mamba3dAD, "tau", 0.0),
        (Mamba3dAD, "dropout", 1.5),
        (Mamba3dAD, "noise_probability", 0.0),
        (Mamba3dAD, "graph_neighbours", 0),
        (Mamba3dAD, "views", 0),
        (Mamba3dAD, "adapter", "'foo'"),
        (Mamba3dAD, "state", 5),
        (Mamba3dAD, "state_scale", 0.96),
        (SeDiR, "heads", 7),
        (SeDiR, "num_groups", 0),
        (SeDiR, "temperature", 0.0),
        (SeDiR, "jitter_probability", -0.1),
        (SeDiR, "jitter_scale", float("nan")),
        (SeDiR, "geometry_beta", float("nan")),
        (SeDiR, "frozen_cache_gb", -1.0),
        (SeDiR, "relative_neighbours", 0),
        (SeDiR, "neighbourhood_ratio", float("inf")),
        (SeDiR, "geometry", "'foo'"),
        (SeDiR, "geometry_source", "'foo'"),
        (SeDiR, "global_token", "'foo'"),
        (SeDiR, "buffer_eviction", "'foo'"),
        (SeDiR, "buffer_size", 0),
        (SeDiR, "smooth_kernel", 0),
        (SeDiR, "smooth_sigma", float("inf")),
        (SeDiR, "decoder", "'foo'"),
        (MC3DAD, "heads", 7),
        (MC3DAD, "num_groups", 0),
        (MC3DAD, "mask_ratio", 1.0),
        (MC3DAD, "row_window", 10),
        (MC3DAD, "row_window", 0),
        (MC3DAD, "test_masks", "'rough'"),
    ],
)
def test_impossible_settings_are_named(detector: type[Detector], setting: str, value: Any) -> None:
    given = value.strip("'") if isinstance(value, str) else value
    common = {"backbone_size": "tiny", "backbone_weights": "random", "register": False}  # nothing else may be missing
    with pytest.raises(InputError, match=f"{setting}={value}"):
        detector(**{**common, setting: given})


@pytest.mark.parametrize(
    ("detector", "setting", "value"),
    [
        (BTF, "reweighting", 1),
        (BTF, "protocol", "loose"),
        (TemplateDistance, "protocol", "loose"),
        (TemplateDistance, "hypotheses", 0),
        (PatchCore, "hypotheses", 0),
        (PatchCore, "coreset_size", 0),
        (PatchCore, "coreset_size", -5),
        (PatchCorePointMAE, "coreset_size", 0),
        (PatchCorePointMAE, "hypotheses", 0),
        (PatchCorePointMAE, "voxel_size", -1.0),
        (Reg3DAD, "protocol", "loose"),
        (Simple3D, "neighbours", ()),
        (Simple3D, "protocol", "loose"),
    ],
)
def test_impossible_settings_of_banks_are_named(detector: type[Detector], setting: str, value: Any) -> None:
    with pytest.raises(InputError, match=re.escape(f"{setting}={value!r}:")):
        detector(**{setting: value})


def test_ranges_include_their_ends_and_nothing_else() -> None:
    check_range(0, 1, lowest=0, highest=1, absent=None)
    for value in (-1e-9, 1.001, float("nan")):
        with pytest.raises(InputError, match="share="):
            check_range(0, 1, share=value)
