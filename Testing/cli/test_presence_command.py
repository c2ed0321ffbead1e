"""`medssl presence` from label maps to the table."""

from __future__ import annotations

import shutil
from pathlib import Path

from medssl.datasets.presence import read_presence


def test_presence_writes_a_table_and_says_how_many_scans_show_the_organ(
    medssl, small_case, tmp_path: Path
) -> None:
    case = tmp_path / "data" / "case"
    case.mkdir(parents=True)
    shutil.copy(small_case.ct, case / "ct.nii.gz")
    shutil.copy(small_case.truth_path, case / "label.nii.gz")
    names = Path(small_case.truth_path.replace(".nii.gz", ".labels.json"))
    shutil.copy(names, case / "label.labels.json")
    table = tmp_path / "presence.csv"
    outcome = medssl("presence", "--data", tmp_path / "data", "--segment", "spleen", "--out", table)
    assert outcome.code == 0, outcome.err
    assert "1 of 1 scans show spleen" in outcome.out
    shown = small_case.truth.mask("spleen").any(axis=(1, 2)).nonzero()[0]
    (row,) = read_presence(table)
    assert (row.scan, row.slices) == ("case/ct.nii.gz", (shown[0], shown[-1]))


def test_presence_of_an_unknown_organ_writes_nothing(medssl, small_case, tmp_path: Path) -> None:
    table = tmp_path / "presence.csv"
    outcome = medssl("presence", "--data", small_case.folder, "--segment", "pancreas", "--out", table)
    assert outcome.code == 1
    assert "medssl: error:" in outcome.err
    assert not table.exists()
