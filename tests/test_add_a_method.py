"""docs/add_a_method.md, run block by block: what a newcomer types is what is tested."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "add_a_method.md"


@pytest.mark.slow
def test_the_page_leads_from_an_empty_file_to_a_row_in_the_table(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.setdefault("PYTHONPATH", "")
    commands = 0
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        if language != "sh":
            name = block.splitlines()[0].removeprefix("# ")
            (tmp_path / name).write_text(block)
            continue
        done = subprocess.run(
            ["sh", "-e", "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, block + done.stdout[-2000:] + done.stderr[-2000:]
        commands += 1
    assert commands == 3
    table = pd.read_csv(tmp_path / "results/mine/comparison.csv")
    assert table["method"].tolist() == ["Curvature"] * 2 + ["Curvature, wide"] * 2
    assert table["o_auroc_mean"].between(0, 1).all()
    tested = pd.read_csv(tmp_path / "runs/curvature_small/version_1/test/metrics.csv")
    assert sorted(tested["category"]) == ["flange", "gear"]
    others = "anomaly3d test --config curvature_small.yaml --model.detector.init_args.neighbours 48 --ckpt_path "
    others += "runs/curvature_small/version_0/checkpoints/last.ckpt"
    environment["PYTHONPATH"] = str(tmp_path)
    done = subprocess.run(others.split(), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "trained with neighbours=24, but the configuration says neighbours=48" in done.stderr
