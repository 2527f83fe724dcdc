"""What the tests share: threads, seeds and the optional folder of development data."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random state, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Development data in the public layouts (folder ANOMALY3D_DATA); the tests that use it skip without it."""
    folder = Path(os.environ.get("ANOMALY3D_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no development data in {folder}")
    return folder


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic data set: two categories, single clouds of every kind of defect."""
    from anomaly3d.data.synthetic.generate import generate

    root = tmp_path_factory.mktemp("data") / "parts"
    return generate(
        root, categories=["flange", "gear"], templates=2, normals=2, defects_per_kind=1, points=1000, seed=0
    )


@pytest.fixture(scope="session")
def open3d() -> ModuleType:
    """The optional package; a test that needs it is skipped where it, or a system library of its own, is missing."""
    return pytest.importorskip("open3d", exc_type=ImportError)


CONF = Path(__file__).parent / "conf"


@pytest.fixture(params=["sedir", "mamba3dad", "mc3d-ad"])
def conf(request: pytest.FixtureRequest) -> Path:
    """Recipe of each method at its smallest size."""
    return CONF / f"{request.param}.yaml"
