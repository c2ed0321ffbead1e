"""From annotated slices to a model of one's own, and what it is good for, as typed."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from medssl import memory
from medssl.cases import CaseStore
from medssl.checkpoints import read_checkpoint, write_checkpoint
from medssl.cli import main
from medssl.few_labels.segmenter import read_model
from medssl.metrics import dice
from medssl.segmentation import Segment, Segmentation, default_color, read_segmentation, write_segmentation
from medssl.volume import Volume, read_volume, write_volume

SEGMENTS = (Segment("liver", 1, default_color(1)),)
QUICK = ("--backbone", "unet2d_4", "--size", "32", "32", "--steps", "2", "--validations", "1", "--device", "cpu",
         "--no-carry")  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees or leaves anything in the user's own folders."""
    monkeypatch.setenv("MEDSSL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def trained(small_case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A case store, and a model store with a model of two versions that were fine-tuned on it."""
    folder = tmp_path_factory.mktemp("trained")
    common = ["--store", str(folder / "cases")]
    assert (
        main(
            [
                "cases",
                "add",
                small_case.ct,
                small_case.truth_path,
                "--slices",
                "all",
                "--name",
                "first",
                *common,
            ]
        )
        == 0
    )
    settings = ["--backbone", "unet2d_4", "--size", "32", "32", "--batch", "6", "--validations", "1"]
    settings += ["--device", "cpu", "--name", "organs"]
    for version, steps in enumerate((2, 60), start=1):
        run = [
            "--steps",
            str(steps),
            "--out",
            str(folder / f"run{version}"),
            "--models",
            str(folder / "models"),
        ]
        assert main(["finetune", "--cases", str(folder / "cases"), *settings, *run]) == 0
    return folder


def test_a_case_whose_ct_is_stored_1024_too_high_is_noted(medssl, small_case, tmp_path: Path) -> None:
    stored = np.maximum(small_case.volume.voxels_kji + np.int16(1024), 0)
    write_volume(Volume(stored, small_case.volume.ijk_to_ras), tmp_path / "ct.nii.gz")
    added = medssl(
        "cases", "add", tmp_path / "ct.nii.gz", small_case.annotation_path, "--store", tmp_path / "s"
    )
    assert added.code == 0
    assert "kept as MR, but looks like a CT whose values are stored 1024 too high" in added.err


def test_cases_are_added_listed_removed_and_brought_back(medssl, small_case) -> None:
    added = medssl(
        "cases", "add", small_case.ct, small_case.annotation_path, "--name", "anna", "--patient", "7"
    )
    assert (added.code, added.err) == (0, "")
    assert "liver on 1 slice, spleen on 1 slice" in added.out
    assert added.out.startswith("Added anna-")
    (case,) = json.loads(medssl("cases", "list", "--json").out)
    assert [(v["segment"], v["axis"], v["indices"]) for v in case["vouched"]] == [
        ("liver", 0, [10]),
        ("spleen", 0, [9]),
    ]
    assert medssl("cases", "add", small_case.ct, small_case.annotation_path).code == 1
    removed = medssl("cases", "remove", case["id"]).out.split()[-1]
    assert "is empty" in medssl("cases", "list").out
    assert medssl("cases", "restore", removed).code == 0
    assert case["id"] in medssl("cases", "list").out


def test_a_finished_segmentation_added_slice_by_slice_is_remarked_on(medssl, small_case) -> None:
    added = medssl("cases", "add", small_case.ct, small_case.truth_path)
    assert added.out.startswith("Added ct-")
    assert "if all of it is drawn, remove the case and add it again with --slices all" in added.err


def test_finished_segmentations_come_in_and_go_out_for_other_programs(
    medssl, small_case, tmp_path: Path
) -> None:
    folder = tmp_path / "theirs" / "p1"
    folder.mkdir(parents=True)
    shutil.copy(small_case.ct, folder / "ct.nii.gz")
    shutil.copy(small_case.truth_path, folder / "label.nii.gz")
    shutil.copy(Path(small_case.truth_path).parent / "truth.labels.json", folder / "labels.json")
    imported = medssl("cases", "import", tmp_path / "theirs")
    assert "Added 1 of 1 cases" in imported.out, imported.err
    for form, file in (("nnunet", "dataset.json"), ("monai", "datalist.json")):
        assert medssl("cases", "export", tmp_path / form, "--format", form).code == 0
        assert "liver" in (tmp_path / form / file).read_text()


def test_finetune_keeps_its_model_with_where_it_comes_from(medssl, trained) -> None:
    stored = medssl("models", "list", "--json", "--models", trained / "models")
    (own,) = json.loads(stored.out)["own"]
    cases = json.loads(medssl("cases", "list", "--json", "--store", trained / "cases").out)
    assert (own["name"], own["in_use"]) == ("organs", 2)
    newest = own["versions"][1]
    assert newest["cases"] == [cases[0]["fingerprint"]]
    assert [s["name"] for s in newest["segments"]] == ["liver", "spleen"]
    assert newest["segments"][0]["color_rgb"] == cases[0]["segments"][0]["color_rgb"]
    assert newest["settings"]["steps"] == 60
    assert set(newest["dice"]) == {"liver", "spleen"}
    assert "organs:2" in medssl("models", "list", "--models", trained / "models").out


def test_versions_are_compared_used_exported_and_deleted(medssl, trained, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(trained / "models", models)
    (case,) = json.loads(medssl("cases", "list", "--json", "--store", trained / "cases").out)
    where = ["--models", models]
    compared = medssl(
        "models",
        "compare",
        "organs:1",
        "organs:2",
        "--case",
        case["id"],
        "--store",
        trained / "cases",
        "--json",
        *where,
    )
    scores = json.loads(compared.out)
    assert scores["organs:2"]["liver"] > max(0.4, scores["organs:1"]["liver"])
    assert medssl("models", "use", "organs:1", *where).out == "organs now stands for organs:1.\n"
    assert medssl("models", "export", "organs", tmp_path / "one.safetensors", *where).code == 0
    assert "Ready: one:1" in medssl("models", "import", tmp_path / "one.safetensors", *where).out
    weights, header = read_checkpoint(tmp_path / "one.safetensors")
    write_checkpoint(tmp_path / "other.safetensors", weights, {**header, "backbone": "unet2d_16"})
    refused = medssl("models", "import", tmp_path / "other.safetensors", *where)
    assert (refused.code, refused.out) == (1, "")
    assert "other" not in medssl("models", "list", *where).out.split()
    assert medssl("models", "delete", "organs:1", *where).code == 0
    own = json.loads(medssl("models", "list", "--json", *where).out)["own"]
    assert [(m["name"], m["in_use"]) for m in own] == [("one", 1), ("organs", 2)]


def test_predict_takes_a_models_name(medssl, small_case, trained, tmp_path: Path) -> None:
    outcome = medssl(
        "predict", small_case.ct, "--model", "organs", "--models", trained / "models", "-o", tmp_path / "organs.nii.gz",
        "--uncertainty-map", tmp_path / "unsure.nii.gz",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = read_segmentation(tmp_path / "organs.nii.gz", small_case.volume)
    assert dice(found.mask("liver"), small_case.truth.mask("liver")) > 0.4
    assert read_volume(tmp_path / "unsure.nii.gz").voxels_kji.min() >= 0


def test_segment_writes_and_scores_every_stage(medssl, small_case, trained, tmp_path: Path) -> None:
    arguments = ["--model", "organs", "--models", trained / "models", "-o", tmp_path / "organs.seg.nrrd"]
    outcome = medssl(
        "segment",
        small_case.ct,
        *arguments,
        "--truth",
        small_case.truth_path,
        "--stages",
        tmp_path / "stages",
        "--json",
    )
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    assert facts["prompt"] == "prediction"
    for segment in facts["segments"]:
        assert list(segment["dice"]) == ["coarse", "largest", "sharpened", "refined", "propagated", "final"]
        assert 0 <= segment["dice"]["final"] <= 1
        assert 1 <= len(segment["reference_slices"]) <= 3
    assert facts["segments"][0]["dice"]["final"] > 0.4
    files = {path.name for path in (tmp_path / "stages").iterdir()}
    assert {"coarse.seg.nrrd", "propagated.seg.nrrd", "uncertainty.nii.gz"} < files
    assert read_segmentation(tmp_path / "organs.seg.nrrd").names == ("liver", "spleen")


def test_segment_starts_from_a_persons_slices_or_from_another_programs_mask(
    medssl, small_case, trained, tmp_path: Path
) -> None:
    output = ["-o", tmp_path / "organs.nii.gz", "--json"]
    drawn = medssl(
        "segment", small_case.ct, "--model", "organs", "--models", trained / "models", *output,
        "--prompt", "annotation", "--annotation", small_case.annotation_path,
    )  # fmt: skip
    assert drawn.code == 0, drawn.err
    assert [s["reference_slices"] for s in json.loads(drawn.out)["segments"]] == [[10], [9]]
    other = medssl(
        "segment", small_case.ct, "--coarse", small_case.truth_path, "--segment", "spleen", *output
    )
    assert [s["name"] for s in json.loads(other.out)["segments"]] == ["spleen"]
    assert medssl("segment", small_case.ct, *output).code == 1


def test_segment_keeps_what_the_case_store_vouches_for(medssl, small_case, trained, tmp_path: Path) -> None:
    arguments = ["--model", "organs", "--models", trained / "models", "-o", tmp_path / "organs.nii.gz"]
    outcome = medssl("segment", small_case.ct, *arguments, "--store", trained / "cases")
    assert outcome.code == 0, outcome.err
    assert "that the case store vouches for stayed as they are" in outcome.out
    found = read_segmentation(tmp_path / "organs.nii.gz", small_case.volume)
    for name in ("liver", "spleen"):
        np.testing.assert_array_equal(found.mask(name), small_case.truth.mask(name))


def test_suggest_ranks_slices_and_volumes_and_says_why(medssl, small_case, trained, tmp_path: Path) -> None:
    drawn = medssl(
        "suggest", small_case.ct, "--annotation", small_case.annotation_path, "--count", "2", "--json"
    )
    suggestions = json.loads(drawn.out)
    assert len(suggestions) == 2
    assert all(
        s["reason"] and (s["segment"], s["index"]) not in {("liver", 10), ("spleen", 9)} for s in suggestions
    )
    model = ["--model", "organs", "--models", trained / "models"]
    taught = medssl("suggest", small_case.ct, *model, "--store", trained / "cases")
    assert "Nothing is left to gain" in taught.out, taught.err
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(small_case.ct, scans / "a.nii.gz")
    ranked = json.loads(medssl("suggest", scans, *model, "--json").out)
    assert [volume["name"] for volume in ranked] == ["a.nii.gz"]

    shutil.copytree(trained / "cases", tmp_path / "cases")
    (case,) = CaseStore(tmp_path / "cases").cases()
    other = replace(small_case.volume, voxels_kji=small_case.volume.voxels_kji[::-1].copy())
    write_volume(other, tmp_path / "other.nii.gz")
    annotation = replace(case.segmentation(), labels_kji=case.segmentation().labels_kji[::-1])
    CaseStore(tmp_path / "cases").add(other, annotation, case.vouched, reference=tmp_path / "other.nii.gz")
    (tmp_path / "other.nii.gz").unlink()
    ranked_all_the_same = medssl("suggest", scans, *model, "--store", tmp_path / "cases", "--json")
    assert "other.nii.gz; put it back or remove the case" in ranked_all_the_same.err
    assert ranked_all_the_same.code == 0


def test_batch_goes_past_a_bad_file_and_on_where_it_stopped(
    medssl, small_case, trained, tmp_path: Path
) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    (scans / "sub").mkdir(parents=True)
    shutil.copy(small_case.ct, scans / "sub" / "good.nii.gz")
    (scans / "bad.nii.gz").write_bytes(b"no image")
    arguments = ["--model", "organs", "--models", trained / "models", "--out", out]
    first = medssl("batch", scans, *arguments, "--coarse-only")
    assert first.code == 1
    assert "1 of 2 volumes failed" in first.err
    assert read_segmentation(out / "sub" / "good.seg.nrrd", small_case.volume).names == ("liver", "spleen")
    rows = list(csv.DictReader((out / "summary.csv").open()))
    assert [(r["volume"], r["state"], r["segment"]) for r in rows] == [
        ("bad.nii.gz", "failed", ""), ("sub/good.nii.gz", "done", "liver"), ("sub/good.nii.gz", "done", "spleen"),
    ]  # fmt: skip
    assert "bad.nii.gz" in rows[0]["problem"]
    before = (out / "sub" / "good.seg.nrrd").stat().st_mtime_ns
    write_volume(Volume(small_case.volume.voxels_kji, small_case.volume.ijk_to_ras), scans / "bad.nii.gz")
    again = medssl("batch", scans, *arguments, "--coarse-only")
    assert (again.code, again.out.split()[0]) == (0, "2"), again.err
    assert (out / "sub" / "good.seg.nrrd").stat().st_mtime_ns == before
    other = medssl("batch", scans, *arguments)
    assert "another model or other settings" in other.err
    assert np.array_equal(
        read_segmentation(out / "bad.seg.nrrd").labels_kji,
        read_segmentation(out / "sub" / "good.seg.nrrd").labels_kji,
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["predict", "CT", "--model", "heart", "-o", "OUT"],
            "There is no model 'heart'; the store holds organs",
        ),
        (["segment", "CT", "--model", "organs:9", "-o", "OUT"], "Model organs has no version 9; it has 1, 2"),
        (["segment", "CT", "--model", "organs", "-o", "OUT", "-a", "ANNOTATION"], "give both or neither"),
        (["models", "compare", "organs"], "Give either --case, or --volume with --truth"),
        (["suggest", "CT"], "Give a model of your own with --model, or slices you have drawn"),
        (
            ["suggest", "CT", "-a", "ANNOTATION", "--count", "0"],
            "At least 1 suggestion must be asked for, not 0",
        ),
        (["batch", "EMPTY", "--model", "organs", "--out", "NEW"], "holds no image"),
        (
            ["finetune", "--cases", "STORE", "--steps", "0", "--out", "NEW"],
            "steps of fine-tuning must be above 0",
        ),
        (["finetune", "--cases", "EMPTY", "--out", "NEW"], "has no case to learn from"),
        (
            ["finetune", "--cases", "STORE", "--segments", "heart", "--out", "NEW"],
            "No slice of heart is vouched for",
        ),
        (
            ["finetune", "--cases", "STORE", "--data", "EMPTY", "--out", "NEW"],
            "either a data folder or a case store",
        ),
        (["finetune", "--cases", "STORE", "--name", "a b", "--out", "NEW"], "'a b' cannot name a model"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(
    medssl, small_case, trained, tmp_path: Path, words: list[str], sentence: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {
        "CT": small_case.ct, "ANNOTATION": small_case.annotation_path, "OUT": tmp_path / "out.nii.gz",
        "EMPTY": tmp_path / "empty", "NEW": tmp_path / "new", "STORE": trained / "cases",
    }  # fmt: skip
    known = [] if words[0] == "finetune" else ["--models", trained / "models"]
    outcome = medssl(*(places.get(word, word) for word in words), *known)
    assert outcome.code == 1
    assert sentence in outcome.err
    assert outcome.err.count("medssl: error:") == 1
    assert not (tmp_path / "out.nii.gz").exists()


@pytest.fixture(scope="module")
def odd_files(small_case, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files that do not belong together, or to no model."""
    folder, labels = tmp_path_factory.mktemp("odd"), small_case.truth.labels_kji
    moved = small_case.truth.ijk_to_ras.copy()
    moved[0, 3] += 40.0
    annotations = {
        "MOVED": Segmentation(labels, moved, small_case.truth.segments),
        "SHORT": Segmentation(labels[:10], small_case.truth.ijk_to_ras, small_case.truth.segments),
        "BLANK": Segmentation(np.zeros_like(labels), small_case.truth.ijk_to_ras, small_case.truth.segments),
    }
    for name, annotation in annotations.items():
        write_segmentation(annotation, folder / f"{name}.nii.gz")
    positive = np.abs(small_case.volume.voxels_kji.astype(np.int32) + 1000) // 5
    write_volume(Volume(positive.astype(np.int16), small_case.volume.ijk_to_ras), folder / "MR.nii.gz")
    return {name: folder / f"{name}.nii.gz" for name in (*annotations, "MR")}


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ("MOVED", "MOVED.nii.gz lies up to 40 mm off the voxels of ct.nii.gz; give one made on that image"),
        ("SHORT", "SHORT.nii.gz has shape (10, 48, 56), but ct.nii.gz has (20, 48, 56)"),
        ("BLANK", "shows no segment on any slice; annotate one first, or say with --slices all"),
    ],
)
def test_labels_that_are_not_of_the_volume_or_vouch_for_nothing_make_no_case(
    medssl, small_case, odd_files, labels: str, sentence: str
) -> None:
    outcome = medssl("cases", "add", small_case.ct, odd_files[labels])
    assert outcome.code == 1
    assert sentence in outcome.err
    assert outcome.err.count("medssl: error:") == 1
    assert "is empty" in medssl("cases", "list").out


def test_a_segment_that_half_of_the_cases_lack_is_ignored_there(medssl, small_case, tmp_path: Path) -> None:
    """Of two patients one knows the liver alone; the model finds both segments."""
    noisy = Volume(small_case.volume.voxels_kji + np.int16(1), small_case.volume.ijk_to_ras)
    write_volume(noisy, tmp_path / "other.nii.gz")
    liver = Segmentation(
        np.where(small_case.truth.mask("liver"), 1, 0).astype(np.uint8), noisy.ijk_to_ras, SEGMENTS[:1]
    )
    write_segmentation(liver, tmp_path / "liver.seg.nrrd")
    store = ["--store", tmp_path / "half"]
    assert medssl("cases", "add", small_case.ct, small_case.truth_path, *store).code == 0
    assert medssl("cases", "add", tmp_path / "other.nii.gz", tmp_path / "liver.seg.nrrd", *store).code == 0
    outcome = medssl("finetune", "--cases", tmp_path / "half", "--out", tmp_path / "run", *QUICK)
    assert outcome.code == 0, outcome.err
    assert "2 cases to learn from" in outcome.err
    assert read_model(tmp_path / "run" / "checkpoint.safetensors").info.names == ("liver", "spleen")


@pytest.mark.parametrize("command", ["predict", "segment", "batch"])
def test_a_volume_of_another_modality_is_refused_but_can_be_asked_for_anyway(
    medssl, trained, odd_files, tmp_path: Path, command: str
) -> None:
    model, out = ["--model", "organs", "--models", trained / "models"], tmp_path / "out.nii.gz"
    if command == "batch":
        scans = tmp_path / "scans"
        scans.mkdir()
        shutil.copy(odd_files["MR"], scans)
        words = ["batch", scans, *model, "--out", tmp_path / "results", "--coarse-only"]
    else:
        words = [command, odd_files["MR"], *model, "-o", out]
    refused = medssl(*words)
    assert refused.code == 1
    assert "does not look like CT" in refused.err
    assert "(--anyway)" in refused.err
    if command == "predict":
        asked = medssl(*words, "--anyway")
        assert asked.code == 0
        assert "do not trust the result" in asked.err


def test_training_that_does_not_fit_is_refused_with_the_figures(
    medssl, trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_on", lambda device: 50_000_000)
    run = tmp_path / "run"
    outcome = medssl("finetune", "--cases", trained / "cases", "--out", run, *QUICK)
    assert outcome.code == 1
    assert " of memory and 50 MB is free on cpu; wait for other runs to end" in outcome.err
    assert not (run / "checkpoint.safetensors").exists()


def test_a_model_goes_on_from_an_earlier_one_under_its_name(medssl, trained, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(trained / "models", models)
    words = ["finetune", "--cases", trained / "cases", "--models", models, "--name", "organs"]
    outcome = medssl(
        *words, "--from", "organs:2", "--out", tmp_path / "run", "--steps", "2", "--device", "cpu"
    )
    assert outcome.code == 0, outcome.err
    assert "Begun with organs:2" in outcome.err
    assert "Kept as organs:3" in outcome.err
    (own,) = json.loads(medssl("models", "list", "--json", "--models", models).out)["own"]
    assert [(v["base"], v["follows"]) for v in own["versions"]] == [
        ("", ""), ("", "organs:1"), ("organs:2", "organs:2"),
    ]  # fmt: skip
    assert "organs:3  *" in medssl("models", "list", "--models", models).out
