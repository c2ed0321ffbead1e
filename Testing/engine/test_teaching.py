"""A slice teaches exactly what is vouched for on it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from medssl.cases import Case, CaseStore, Vouched
from medssl.datasets.data import IGNORE
from medssl.datasets.input_contract import InputContract
from medssl.datasets.labelled import LabelledScans
from medssl.errors import InputError
from medssl.events import Log
from medssl.few_labels.finetune_run import FinetuneConfig, finetune
from medssl.few_labels.segmenter import read_model
from medssl.few_labels.teaching import labelled_cases
from medssl.segmentation import Segment, Segmentation
from medssl.volume import Volume, read_volume, write_volume

GRID = np.diag([1.0, 1.0, 2.0, 1.0])
SEGMENTS = tuple(
    Segment(name, n, (0.1, 0.2, 0.3)) for n, name in enumerate(("liver", "spleen", "kidney"), start=1)
)


@pytest.fixture
def store(tmp_path: Path) -> CaseStore:
    """One case: liver on slices 1 and 2, spleen on 2 and 3, kidney on column 4 only."""
    voxels = np.random.default_rng(0).integers(-1000, 300, (6, 8, 9)).astype(np.int16)
    labels = np.zeros(voxels.shape, np.uint8)
    labels[:, 1:3, 1:4], labels[:, 4:6, 1:4], labels[:, 2:5, 6] = 1, 2, 3
    store = CaseStore(tmp_path / "store")
    store.add(
        Volume(voxels, GRID),
        Segmentation(labels, GRID, SEGMENTS),
        [
            Vouched("liver", 0, (1, 2)),
            Vouched("spleen", 0, (2, 3), "propagated"),
            Vouched("kidney", 2, (6,)),
        ],
        name="a",
    )
    return store


def test_slices_are_grouped_by_the_segments_they_teach(store: CaseStore) -> None:
    parts = labelled_cases(store.cases(), ["liver", "spleen"])
    found = {tuple(sorted(part.read()[1].names)): part.vouched for part in parts}
    assert found == {("liver",): {0: [1]}, ("liver", "spleen"): {0: [2]}, ("spleen",): {0: [3]}}
    assert len({part.patient for part in parts}) == 1


def test_a_segment_that_is_not_vouched_for_is_unknown_and_the_rest_is_ignored(store: CaseStore) -> None:
    contract = InputContract(size=(32, 32))
    scans = LabelledScans.from_cases(
        labelled_cases(store.cases(), ["liver", "spleen"]), contract, ["liver", "spleen"]
    )
    by_known = {scan.known: np.asarray(scan.labels[:]) for scan in scans}
    assert set(by_known) == {(True, False), (True, True), (False, True)}
    both = by_known[True, True]
    vouched = [k for k in range(len(both)) if (both[k] != IGNORE).any()]
    assert len(vouched) == 1
    assert set(np.unique(both[vouched[0]])) == {0, 1, 2}
    assert set(np.unique(by_known[True, False])) == {0, 1, IGNORE}


def test_cases_are_not_kept_in_memory_all_at_once(store: CaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[weakref.ref[Volume]] = []

    def reading(case: Case, of: Callable[[Case], Volume] = Case.volume) -> Volume:
        volume = of(case)
        read.append(weakref.ref(volume))
        return volume

    monkeypatch.setattr(Case, "volume", reading)
    parts = labelled_cases(store.cases(), ["liver", "spleen"])
    assert not read, "nothing is read before a part is"
    first = parts[0].read()[0]
    assert parts[1].read()[0] is first, "the parts of one case share its volume"
    assert len(read) == 1
    del first
    gc.collect()
    assert read[0]() is None
    parts[2].read()
    assert len(read) == 2


def test_slices_across_another_axis_teach_too(store: CaseStore) -> None:
    (part,) = labelled_cases(store.cases(), ["kidney"])
    assert part.vouched == {2: [6]}


def test_fine_tuning_keeps_the_colours_and_says_which_cases_are_damaged(
    store: CaseStore, tmp_path: Path
) -> None:
    lost = store.add(Volume(np.arange(432).reshape(6, 8, 9), GRID), store.cases()[0].segmentation(),
                     [Vouched("liver", 0, (1,))], name="lost")  # fmt: skip
    (lost.folder / "case.json").write_text("{")
    config = FinetuneConfig(cases=store.folder, out=tmp_path / "run", segments=("liver",), backbone="unet2d_4", steps=1,
                            batch=2, size=(32, 32), device="cpu")  # fmt: skip
    said = [event.text for event in finetune(config) if isinstance(event, Log)]
    assert any(lost.id in text for text in said)
    assert any("1 case to learn from" in text for text in said)
    assert read_model(tmp_path / "run" / "checkpoint.safetensors").info.segments[0].color_rgb == (
        0.1,
        0.2,
        0.3,
    )
    (store.cases()[0].folder / "case.json").write_text("{")
    events = finetune(replace(config, out=tmp_path / "other"))
    told = [next(events), next(events)]
    with pytest.raises(InputError, match="No slice of liver is vouched for"):
        next(events)
    assert all(isinstance(event, Log) and event.text.startswith("Left out: ") for event in told)


def test_a_case_whose_volume_was_moved_is_left_out_and_is_no_part_of_the_models_lineage(
    store: CaseStore, tmp_path: Path
) -> None:
    here = store.cases()[0]
    away = tmp_path / "away.nii.gz"
    write_volume(Volume(np.arange(432).reshape(6, 8, 9).astype(np.int16), GRID), away)
    store.add(
        read_volume(away), here.segmentation(), [Vouched("liver", 0, (1,))], name="0 away", reference=away
    )
    away.rename(tmp_path / "moved.nii.gz")
    config = FinetuneConfig(cases=store.folder, out=tmp_path / "run", segments=("liver",), backbone="unet2d_4", steps=1,
                            batch=2, size=(32, 32), device="cpu")  # fmt: skip
    said = [event.text for event in finetune(config) if isinstance(event, Log)]
    assert said[0].startswith("Left out: The volume of case 0 away is gone from")
    assert read_model(tmp_path / "run" / "checkpoint.safetensors").info.cases == (here.fingerprint,)
    here.volume_path.rename(tmp_path / "gone.nii.gz")
    events = finetune(replace(config, out=tmp_path / "other"))
    with pytest.raises(InputError, match="No slice of liver is vouched for"):
        list(events)


def test_a_run_goes_on_with_its_own_segments_when_a_case_of_another_has_joined(
    store: CaseStore, tmp_path: Path
) -> None:
    config = FinetuneConfig(cases=store.folder, out=tmp_path / "run", backbone="unet2d_4", steps=1, batch=2,
                            size=(32, 32), device="cpu")  # fmt: skip
    list(finetune(config))
    known = store.cases()[0].segmentation()
    tumour = replace(known, segments=(replace(known.segments[0], name="tumour"), *known.segments[1:]))
    store.add(Volume(np.arange(432).reshape(6, 8, 9), GRID), tumour, [Vouched("tumour", 0, (1,))], name="new")
    said = [event.text for event in finetune(config) if isinstance(event, Log)]
    assert any("Going on after step 1" in text for text in said)
    assert "tumour" not in read_model(tmp_path / "run" / "checkpoint.safetensors").info.names


def test_segments_nobody_vouches_for_are_named(store: CaseStore) -> None:
    with pytest.raises(InputError, match=r"No slice of pancreas is vouched for.*kidney, liver, spleen"):
        labelled_cases(store.cases(), ["pancreas"])
