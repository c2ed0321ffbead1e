"""A study compares like with like: the same patients, the same schedule, its own learning rate, and repeats nothing."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from medssl.datasets.input_contract import InputContract
from medssl.datasets.labelled import LabelledCase
from medssl.errors import InputError
from medssl.events import Log
from medssl.few_labels.finetuning import FinetuneSettings
from medssl.runs.run_folder import RunFolder
from medssl.segmentation import Segment, Segmentation, write_segmentation
from medssl.studies.study import (
    StudyConfig,
    _division,
    _given_encoder,
    _is_to_be_made,
    _require_same_encoders,
    study,
)
from medssl.studies.study_report import findings, paired_difference, write_report
from medssl.studies.study_runs import Arm, RunResult, StudyBench, StudyData, _mean_scores, runs_of
from medssl.volume import Volume, write_volume

CONTRACT = InputContract(
    size=(32, 32), spacing_kji_mm=(None, 1.0, 1.0), window_hu=(-200.0, 400.0), mean_hu=0.0
)
SCRATCH = Arm("scratch unet2d_4", "unet2d_4", CONTRACT, "scratch unet2d_4")


def case(n: int) -> LabelledCase:
    rng = np.random.default_rng(n)
    voxels, labels = rng.normal(40, 10, (3, 32, 32)).astype(np.int16), np.zeros((3, 32, 32), np.uint8)
    labels[:2, 10:22, 6 + n : 18 + n] = 1
    voxels[labels == 1] = 350
    voxels[:, :5] = -1000
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    truth = Segmentation(labels, affine, (Segment("organ", 1, (1.0, 0.0, 0.0)),))
    return LabelledCase(f"case{n}", f"p{n}", Volume(voxels, affine, f"case{n}"), truth)


def data() -> StudyData:
    cases = tuple(case(n) for n in range(5))
    return StudyData(cases, ("organ",), {c.name: c.name for c in cases}, ("p0", "p1"), ("p2",), ("p3", "p4"))


def result(arm: str, seed: int, dice: dict[str, float]) -> RunResult:
    scores = {p: {"organ": {"dice": d, "nsd": d, "hd95_mm": 1.0}} for p, d in dice.items()}
    return RunResult(arm, 0.5, seed, 1e-3, ("p0",), 0.5, 1.0, scores)


def test_a_smaller_fraction_lies_within_a_larger_one_and_seeds_differ() -> None:
    many = replace(data(), train=tuple(f"p{n:02}" for n in range(20)))
    parts = [set(many.labelled(0, fraction)) for fraction in (0.05, 0.2, 0.5, 1.0)]
    assert [len(part) for part in parts] == [1, 4, 10, 20]
    assert all(small < large for small, large in itertools.pairwise(parts))
    assert len({many.labelled(seed, 0.2) for seed in range(5)}) > 1


def test_the_interval_of_equal_differences_is_their_value() -> None:
    found = paired_difference(np.array([0.5, 0.7, 0.9]), np.array([0.4, 0.6, 0.8]))
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_the_interval_is_about_that_of_the_normal_approximation() -> None:
    differences = np.random.default_rng(0).normal(0.02, 0.05, 400)
    found = paired_difference(differences, np.zeros(400))
    half = 1.96 * differences.std(ddof=1) / 20
    assert found.low == pytest.approx(differences.mean() - half, abs=5e-4)
    assert found.high == pytest.approx(differences.mean() + half, abs=5e-4)


def test_patients_are_the_unit_not_patients_times_seeds(tmp_path: Path) -> None:
    method = Arm("mae", "unet2d_4", CONTRACT, SCRATCH.name, tmp_path / "mae.safetensors")
    runs = [result(SCRATCH.name, 0, {"p3": 0.5, "p4": 0.6}), result(SCRATCH.name, 1, {"p3": 0.7, "p4": 0.6})]
    runs += [result("mae", 0, {"p3": 0.8, "p4": 0.7}), result("mae", 1, {"p3": 0.6, "p4": 0.7})]
    runs.append(replace(result("mae", 0, {}), learning_rate=3e-3, seconds=9.0))
    control, mae = findings(runs, [SCRATCH, method])
    assert control.dice == pytest.approx({"p3": 0.6, "p4": 0.6})
    assert (mae.seeds, mae.learning_rate, mae.seconds) == (2, 1e-3, 11.0)
    text = write_report(tmp_path, runs, [SCRATCH, method], data(), [0.5], 10)
    assert "+10.0 (+10.0 to +10.0)" in text
    assert (tmp_path / "report.png").stat().st_size > 5000


def test_a_seed_that_only_one_side_has_does_not_count_in_a_difference(tmp_path: Path) -> None:
    method = Arm("mae", "unet2d_4", CONTRACT, SCRATCH.name, tmp_path / "mae.safetensors")
    runs = [result(SCRATCH.name, seed, {"p3": dice, "p4": dice}) for seed, dice in enumerate((0.5, 0.9, 0.9))]
    runs.append(result("mae", 0, {"p3": 0.6, "p4": 0.6}))
    assert "+10.0 (+10.0 to +10.0)" in write_report(tmp_path, runs, [SCRATCH, method], data(), [0.5], 10)


def test_a_cell_chooses_its_learning_rate_on_the_validation_patients_and_repeats_nothing(
    tmp_path: Path,
) -> None:
    settings = FinetuneSettings(steps=20, batch=2, validations=1, patience=0)
    rates = (1e-8, 1e-2)
    assert StudyBench(data()).run_cell(tmp_path, SCRATCH, 0.5, 2, settings, rates) == 1e-2
    runs = {(run.seed, run.learning_rate): run for run in runs_of(tmp_path)}
    assert set(runs) == {(0, 1e-8), (0, 1e-2), (1, 1e-2)}
    assert not runs[0, 1e-8].scores
    assert set(runs[1, 1e-2].scores) == {"p3", "p4"}
    assert runs[0, 1e-2].patients == data().labelled(0, 0.5)

    def refuse() -> bool:
        raise AssertionError("something was trained again")

    StudyBench(data(), cancelled=refuse).run_cell(tmp_path, SCRATCH, 0.5, 2, settings, rates)


def test_a_run_that_was_killed_before_its_test_is_tested(tmp_path: Path) -> None:
    settings = FinetuneSettings(steps=2, batch=2, validations=1, patience=0)
    StudyBench(data()).run_cell(tmp_path, SCRATCH, 0.5, 2, settings, (1e-3,))
    whole = {run.seed: run.scores for run in runs_of(tmp_path)}
    for path in tmp_path.glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "scores": {}}))
    StudyBench(data()).run_cell(tmp_path, SCRATCH, 0.5, 2, settings, (1e-3,))
    assert {run.seed: run.scores for run in runs_of(tmp_path)} == whole


def test_a_patient_with_two_scans_has_the_mean_of_both() -> None:
    both = [{"liver": {"dice": 0.2}}, {"liver": {"dice": 0.4}, "spleen": {"dice": 0.9}}]
    found = _mean_scores(both)
    assert found == {"liver": {"dice": pytest.approx(0.3)}, "spleen": {"dice": 0.9}}


def test_hidden_patients_who_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "medssl.studies.study.find_cases", lambda folder, exclude: [case(n) for n in range(5)]
    )
    config = StudyConfig(data=tmp_path, out=tmp_path / "out", segment=("organ",), hidden=("case9",))
    with pytest.raises(InputError, match="called case9"):
        list(study(config))
    assert not (tmp_path / "out" / "study.json").exists()


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"methods": ("magic",)}, "magic"), ({"fractions": (0.0,)}, "Fractions"), ({"tune_at": 0.3}, "0.3"),
     ({"test_share": 0.9, "validation_share": 0.2}, "shares"), ({"seed": -1}, "seed")],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(changes: dict[str, object], word: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=word):
        StudyConfig(data=tmp_path, out=tmp_path, segment=("organ",), **changes)  # type: ignore[arg-type]


def on_disk(folder: Path, cases: Mapping[str, int]) -> Path:
    """Cases in folders of their own; a number stands for what one shows."""
    for name, n in cases.items():
        (folder / name).mkdir(parents=True)
        volume, truth = case(n).read()
        write_volume(volume, folder / name / "ct.nii.gz")
        write_segmentation(truth, folder / name / "label.nii.gz")
    return folder


def test_one_person_under_two_names_is_on_one_side(tmp_path: Path) -> None:
    """Scan a is there as patient 1's and as patient 2's: so b and c are of the same person."""
    folder = on_disk(tmp_path / "data", {"a": 0, "again": 0, "b": 1, "c": 2, "d": 3, "e": 4, "f": 5})
    (folder / "patients.csv").write_text("scan,patient\na,1\nb,1\nagain,2\nc,2\n")
    for seed in range(4):
        (tmp_path / f"{seed}").mkdir()
        divided = _division(StudyConfig(data=folder, out=tmp_path / f"{seed}", segment=("organ",), seed=seed))
        owner = {each.name[0]: each.patient for each in divided.cases}
        assert owner["a"] == owner["b"] == owner["c"] == "1"
        assert sum("1" in part for part in (divided.train, divided.validation, divided.test)) == 1
        assert "2" not in (*divided.train, *divided.validation, *divided.test)


@pytest.mark.parametrize("part", ["ct.nii.gz", "label.nii.gz"])
def test_a_case_that_has_changed_since_the_study_was_begun_is_named(tmp_path: Path, part: str) -> None:
    folder = on_disk(tmp_path / "data", {"a": 0, "b": 1, "c": 2, "d": 3})
    config = StudyConfig(data=folder, out=tmp_path, segment=("organ",))
    first = _division(config)
    again = _division(config)
    assert (again.train, again.test, again.ids) == (first.train, first.test, first.ids)
    other = on_disk(tmp_path / "other", {"b": 7})
    shutil.copy(other / "b" / part, folder / "b" / part)
    with pytest.raises(InputError, match=r"b/ct\.nii\.gz has changed since the study .* was begun"):
        _division(config)


def test_scans_that_are_left_out_are_counted(tmp_path: Path) -> None:
    folder = on_disk(tmp_path / "data", {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4, "again": 0, "other": 6})
    liver = replace(case(6).read()[1], segments=(Segment("liver", 1, (1.0, 0.0, 0.0)),))
    write_segmentation(liver, folder / "other" / "label.nii.gz")
    events = study(StudyConfig(data=folder, out=tmp_path / "study", segment=("organ",)))
    told = [event.text for event in itertools.islice(events, 2) if isinstance(event, Log)]
    assert told[1] == (
        "2 of the labelled scans are left out: they have no label of organ, or the voxels of another one."
    )


def test_a_study_whose_validation_patients_show_nothing_is_refused_before_it_trains(tmp_path: Path) -> None:
    blank = replace(
        case(2), labels=replace(case(2).read()[1], labels_kji=np.zeros_like(case(2).read()[1].labels_kji))
    )
    some = replace(data(), cases=tuple(blank if c.patient in data().validation else c for c in data().cases))
    with pytest.raises(InputError, match="No validation patient shows organ"):
        StudyBench(some).cost_of(SCRATCH, FinetuneSettings(steps=2, batch=2))


def test_a_folder_without_cases_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match="no image with labels"):
        list(study(StudyConfig(data=tmp_path / "data", out=tmp_path / "out", segment=("organ",))))


@pytest.mark.parametrize("in_a_run", [False, True])
def test_an_encoder_that_is_given_is_used_as_it_is_and_never_trained_on(
    tmp_path: Path, in_a_run: bool
) -> None:
    given = tmp_path / "encoders" / "mae" / "checkpoint.safetensors"
    given.parent.mkdir(parents=True)
    if in_a_run:
        with RunFolder.create(given.parent, "pretrain", {}).occupied():
            pass
    given.write_bytes(b"weights")
    config = StudyConfig(
        data=tmp_path, out=tmp_path / "out", segment=("liver",), encoders=tmp_path / "encoders"
    )
    assert _given_encoder(config, "mae") == given
    assert not _is_to_be_made(config, Arm("mae", "vit_tiny", CONTRACT, "scratch", given))


def test_an_encoder_of_a_run_under_way_is_refused(tmp_path: Path) -> None:
    given = tmp_path / "encoders" / "mae" / "checkpoint.safetensors"
    RunFolder.create(given.parent, "pretrain", {})
    given.write_bytes(b"weights")
    config = StudyConfig(
        data=tmp_path, out=tmp_path / "out", segment=("liver",), encoders=tmp_path / "encoders"
    )
    with pytest.raises(InputError, match="is not finished"):
        _given_encoder(config, "mae")


def test_results_of_two_encoders_never_share_a_name(tmp_path: Path) -> None:
    encoder = tmp_path / "encoders" / "mae.safetensors"
    encoder.parent.mkdir()
    encoder.write_bytes(b"one")
    (tmp_path / "out").mkdir()
    config = StudyConfig(data=tmp_path, out=tmp_path / "out", segment=("liver",), encoders=encoder.parent)
    arm = Arm("mae", "vit_tiny", InputContract(size=(64, 64)), "scratch", encoder)
    _require_same_encoders(config, [arm])
    _require_same_encoders(config, [arm])
    encoder.write_bytes(b"another")
    with pytest.raises(InputError, match=r"results of mae in .* are those of another encoder"):
        _require_same_encoders(config, [arm])
