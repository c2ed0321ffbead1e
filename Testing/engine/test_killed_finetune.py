"""Fine-tuning that is killed at any moment goes on to the same weights, and no store is ever damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import medssl
import pytest

SCRIPT = Path(__file__).parents[1] / "killed_finetune.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each life is a forked process")
def test_twenty_kills_change_no_weight_and_damage_no_store(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(medssl.__file__).parents[1]),
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    }
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "lives"), "1"],
        env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    facts = json.loads(ended.stdout)
    assert facts["kills"] >= 18
    assert facts["killed"] == facts["whole"] == facts["kept"]
    assert facts["versions"] == ["bright:1"]
    assert facts["state"] == "done"
