"""What the commands do when all is well."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from medssl.cli.program import COMMANDS
from medssl.errors import Cancelled
from medssl.metrics import dice
from medssl.registry import DEFAULT_MODEL, find_entry, model_path
from medssl.segmentation import read_segmentation


def test_propagate_writes_whole_organs_that_slicer_can_name(medssl, small_case, tmp_path: Path) -> None:
    output = tmp_path / "organs.seg.nrrd"
    outcome = medssl("propagate", small_case.ct, "-a", small_case.annotation_path, "-o", output)
    assert outcome.code == 0, outcome.err
    organs = read_segmentation(output, small_case.volume)
    assert [(s.name, s.label) for s in organs.segments] == [("liver", 1), ("spleen", 5)]
    for name in organs.names:
        assert dice(organs.mask(name), small_case.truth.mask(name)) > 0.8
    assert "liver" in outcome.out
    assert "small model" in outcome.err


def test_propagate_as_json_is_one_document(medssl, small_case, tmp_path: Path) -> None:
    output = tmp_path / "organs.nii.gz"
    outcome = medssl(
        "propagate",
        small_case.ct,
        "-a",
        small_case.annotation_path,
        "-o",
        output,
        "--json",
        "--segment",
        "spleen",
    )
    facts = json.loads(outcome.out)
    (spleen,) = facts["segments"]
    assert facts["axis"] == 0
    assert (spleen["name"], spleen["reference_slices"]) == ("spleen", [9])
    assert spleen["confidence"][9] == 1.0
    assert len(spleen["confidence"]) == small_case.volume.shape_kji[0]


def test_propagate_stays_in_the_range_and_starts_from_the_chosen_slices(
    medssl, small_case, tmp_path: Path
) -> None:
    output = tmp_path / "organs.nii.gz"
    arguments = [
        "--reference-slices",
        "liver:9,11",
        "spleen:8",
        "--range",
        "7:12",
        "--window",
        "40/400",
        "--json",
    ]
    outcome = medssl("propagate", small_case.ct, "-a", small_case.truth_path, "-o", output, *arguments)
    assert outcome.code == 0, outcome.err
    liver, spleen = json.loads(outcome.out)["segments"]
    assert (liver["reference_slices"], spleen["reference_slices"]) == ([9, 11], [8])
    filled = np.flatnonzero(read_segmentation(output).labels_kji.any(axis=(1, 2)))
    assert (filled.min(), filled.max()) == (7, 12)


def test_propagate_takes_what_every_segment_was_given_on_some_slice(
    medssl, small_case, tmp_path: Path
) -> None:
    arguments = ["--reference-slices", "15", "--json"]
    output = tmp_path / "organs.nii.gz"
    outcome = medssl("propagate", small_case.ct, "-a", small_case.truth_path, "-o", output, *arguments)
    assert [s["name"] for s in json.loads(outcome.out)["segments"]] == ["liver"]


def test_info_says_which_slices_would_be_used(medssl, small_case) -> None:
    outcome = medssl("info", small_case.ct, "--annotation", small_case.annotation_path)
    assert outcome.code == 0
    assert "56 x 48 x 20 voxels" in outcome.out
    assert "liver: 10" in outcome.out
    facts = json.loads(medssl("info", small_case.ct, "--json").out)
    assert facts["spacing_kji_mm"] == [3.0, 2.0, 2.0]
    assert facts["content_hash"] == small_case.volume.content_hash


def test_evaluate_a_perfect_result(medssl, small_case) -> None:
    assert "1.000" in medssl("evaluate", small_case.truth_path, small_case.truth_path).out
    facts = json.loads(medssl("evaluate", small_case.annotation_path, small_case.truth_path, "--json").out)
    assert [score["segment"] for score in facts["segments"]] == ["liver", "spleen"]


def test_refine_shows_coarse_largest_and_refined_side_by_side(medssl, small_case, tmp_path: Path) -> None:
    output = tmp_path / "fine.nii.gz"
    arguments = ["--truth", small_case.truth_path, "--segment", "liver"]
    outcome = medssl("refine", small_case.ct, "-c", small_case.truth_path, "-o", output, *arguments)
    assert outcome.code == 0, outcome.err
    header, _, row, *_ = outcome.out.splitlines()
    assert "coarse Dice" in header
    assert "largest part Dice" in header
    assert "refined Dice" in header
    assert row.split()[4] == "1.000"
    assert read_segmentation(output).names == ("liver",)


def test_demo_on_your_own_ct_writes_a_picture_and_a_table(medssl, small_case, tmp_path: Path) -> None:
    outcome = medssl(
        "demo", "--ct", small_case.ct, "--label", small_case.truth_path, "--out", tmp_path / "demo"
    )
    assert outcome.code == 0, outcome.err
    assert "HD95 mm" in outcome.out
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {
        "ct.nii.gz",
        "annotation.nii.gz",
        "annotation.labels.json",
        "segmentation.nii.gz",
        "segmentation.labels.json",
        "segmentation.seg.nrrd",
        "report.png",
    }
    assert (tmp_path / "demo" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert read_segmentation(tmp_path / "demo" / "annotation.nii.gz").names == ("liver", "spleen")


def test_a_trained_tracker_of_ones_own_is_imported_used_and_taken_out(
    medssl, small_case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSSL_HOME", str(tmp_path / "home"))
    run = tmp_path / "run"
    run.mkdir()
    shutil.copyfile(model_path(find_entry(DEFAULT_MODEL)), run / "checkpoint.safetensors")
    taken = medssl("models", "import", run, "--name", "ours")
    assert taken.code == 0, taken.err
    assert taken.out.startswith(
        "Ready: ours. Clicks, boxes and propagation: your own, from run/checkpoint.safetensors"
    )
    assert "ours" in medssl("models", "list").out.split()

    asked = ["propagate", small_case.ct, "-a", small_case.annotation_path]
    assert medssl(*asked, "-o", tmp_path / "ours.nii.gz", "--model", "ours").code == 0
    assert medssl(*asked, "-o", tmp_path / "shipped.nii.gz").code == 0
    ours, shipped = (
        read_segmentation(tmp_path / f"{name}.nii.gz").labels_kji for name in ("ours", "shipped")
    )
    np.testing.assert_array_equal(ours, shipped)

    again = medssl("models", "import", run, "--name", "ours")
    assert (again.code, again.out) == (1, "")
    assert "There is a model ours already" in again.err
    assert medssl("models", "import", run, "--name", "../ours").code == 1
    assert medssl("models", "delete", "ours").out.startswith("Deleted ours; the files are kept in")
    assert "There is no model 'ours'" in medssl(*asked, "-o", tmp_path / "no.nii.gz", "--model", "ours").err
    assert not (tmp_path / "no.nii.gz").exists()


def test_models_list_names_the_shipped_model_and_the_official_ones(medssl) -> None:
    ids = {entry["id"] for entry in json.loads(medssl("models", "list", "--json").out)["promptable"]}
    assert {"medssl-nano", "sam2.1-hiera-tiny", "sam-vit-b"} <= ids
    assert "sam2.1-hiera-tiny" in medssl("models", "list").out


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_teaches_with_examples(medssl, command: str) -> None:
    outcome = medssl(command, "--help")
    assert outcome.code == 0
    assert f"medssl {command}" in outcome.out
    assert "examples:" in outcome.out


def test_the_options_of_training_come_from_its_configuration(medssl) -> None:
    text = medssl("train", "tracker", "--help").out
    assert "--learning-rate FLOAT" in text
    assert "Peak of AdamW's learning rate [0.0008]" in " ".join(text.split())


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["paint"],
        ["propagate", "ct.nii.gz"],
        ["propagate", "ct.nii.gz", "-a", "a.nii.gz", "-o", "o.nii.gz", "--range", "5"],
        ["propagate", "ct.nii.gz", "-a", "a.nii.gz", "-o", "o.nii.gz", "--window", "soft"],
        ["propagate", "ct.nii.gz", "-a", "a.nii.gz", "-o", "o.nii.gz", "--window", "40/0"],
        ["propagate", "ct.nii.gz", "-a", "a.nii.gz", "-o", "o.nii.gz", "--axis", "3"],
        ["models"],
        ["train", "tracker"],
    ],
)
def test_a_misspelled_command_ends_with_2(medssl, arguments: list[str]) -> None:
    outcome = medssl(*arguments)
    assert outcome.code == 2
    assert "usage: medssl" in outcome.err


def heed_ctrl_c() -> None:
    """A suite that runs in the background of a shell ignores it, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_with_130_and_leaves_nothing(small_case, tmp_path: Path) -> None:
    output = tmp_path / "organs.nii.gz"
    command = [
        sys.executable,
        "-m",
        "medssl.cli",
        "propagate",
        small_case.ct,
        "-a",
        small_case.annotation_path,
    ]
    process = subprocess.Popen(
        [*command, "-o", str(output), "--no-stop"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("Propagating:")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "medssl: cancelled"
    assert os.listdir(tmp_path) == []


def test_ctrl_c_while_the_commands_are_still_being_loaded_is_one_line_too(medssl, monkeypatch) -> None:
    class Impatient:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            if name == "medssl.cli.program":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "medssl.cli.program")
    monkeypatch.setattr(sys, "meta_path", [Impatient, *sys.meta_path])
    outcome = medssl("info", "ct.nii.gz")
    assert (outcome.code, outcome.err) == (130, "medssl: cancelled\n")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    line = f"{sys.executable} -m medssl.cli models list | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Models of your own")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (KeyboardInterrupt(), 130, "medssl: cancelled"),
        (
            Cancelled("Stopped after step 3 of 9."),
            130,
            "medssl: Stopped after step 3 of 9.\nmedssl: cancelled",
        ),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            1,
            "medssl: error: The package torch is not installed; install it with: pip install 'medssl[engine]'",
        ),
    ],
)
def test_what_comes_while_a_command_makes_its_options_ends_as_it_does_later(
    medssl, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, lines: str
) -> None:
    def configure(parser: argparse.ArgumentParser) -> None:
        raise error

    monkeypatch.setitem(COMMANDS, "finetune", replace(COMMANDS["finetune"], configure=configure))
    outcome = medssl("finetune", "--help")
    assert (outcome.code, outcome.out, outcome.err) == (code, "", lines + "\n")


def test_a_name_the_terminal_has_no_letters_for_is_written_all_the_same(small_case, tmp_path: Path) -> None:
    shutil.copy(small_case.ct, tmp_path / "Zo\xeb \u65e5.nii.gz")
    done = subprocess.run(
        [sys.executable, "-m", "medssl.cli", "info", str(tmp_path / "Zo\xeb \u65e5.nii.gz")],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].endswith(r"Zo\xeb \u65e5.nii.gz")
