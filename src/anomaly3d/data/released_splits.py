"""Test clouds of the released data sets: (normal, anomalous) per category.

Anomaly-ShapeNet (v2) is counted from the test list of MC3D-AD's public repository (jiayi-art/MC3D-AD,
data/Anomaly_shapeNet/test.json, commit 87e44b4). Its 1312 lines have the release's totals: 600 positive, 280 bulge, 280
concavity, 45 scratch, 38 hole, 36 broken, 25 crak and 8 bending. Real3D-AD has 50 good and 50 defective scans a
category, shell 52 and 48 (its README's table), and chicken 52 and 54 with the copies that lie in its folder (604 and
602 in all). The released files themselves were not at hand when this was written.
"""

from __future__ import annotations

import re

_ANOMALY_SHAPENET = {
    14: "ashtray0 bag0 bottle0 cup0 cup1 eraser0 headset1 helmet1 jar0 microphone0 vase1 vase2 vase5 vase7",
    15: "headset0",
    16: "vase0",
    18: "bowl0 bowl1 bowl2 bowl3 bowl4 cap0 tap1",
    19: "bottle1 bowl5 cap3 cap4 cap5",
    21: "bottle3 bucket0 bucket1",
    22: "helmet3 tap0 vase3 vase4 vase8 vase9",
    23: "helmet0 helmet2 shelf0",
}
_REAL3D_AD = "airplane candybar car chicken diamond duck fish gemstone seahorse shell starfish toffees"
_TEST_CLOUDS = {
    "anomalyshapenet": {name: (15, n) for n, names in _ANOMALY_SHAPENET.items() for name in names.split()},
    "real3dad": {name: (50, 50) for name in _REAL3D_AD.split()} | {"chicken": (52, 54), "shell": (52, 48)},
}
_PAPERS_NAMES = {"jar": "jar0", "phone": "microphone0"}


def released_counts(dataset: str) -> dict[str, tuple[int, int]]:
    """Numbers of normal and anomalous test clouds by category; empty for a data set that is not known.

    Case and punctuation of the name do not matter.
    """
    return _TEST_CLOUDS.get(re.sub(r"[^a-z0-9]", "", dataset.lower()), {})


def category_folder(category: str) -> str:
    """The category's name in the release, for a name in a paper's table."""
    return _PAPERS_NAMES.get(category, category)
