"""Cases in and out: what another tool reads is what was vouched for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from engine.test_dicom_seg import change_tags, two_organs, write_series
from medssl.case_exchange import Pair, export_monai, export_nnunet, import_dicom_seg, import_pairs
from medssl.cases import Case, CaseStore, Vouched
from medssl.datasets.labelled import find_cases
from medssl.errors import InputError
from medssl.events import Log, Progress, drain
from medssl.formats.dicom_seg import write_dicom_seg
from medssl.formats.imagefile import read_image
from medssl.segmentation import Segment, Segmentation, write_segmentation
from medssl.volume import Volume, read_volume, write_volume

GRID = np.diag([-0.7, 0.8, 2.5, 1.0])
SEGMENTS = (Segment("liver", 2, (1.0, 0.0, 0.0)), Segment("spleen", 5, (0.0, 1.0, 0.0)))


def pair(seed: int = 0) -> tuple[Volume, Segmentation]:
    rng = np.random.default_rng(seed)
    labels = np.zeros((5, 6, 7), np.uint8)
    labels[1:4, 1:3, 1:4], labels[2:4, 4:, 4:] = 2, 5
    return Volume(rng.integers(-1000, 900, (5, 6, 7)).astype(np.int16), GRID), Segmentation(
        labels, GRID, SEGMENTS
    )


def store_of(folder: Path, *vouched: list[Vouched]) -> CaseStore:
    store = CaseStore(folder)
    for seed, each in enumerate(vouched):
        store.add(*pair(seed), each, name=f"case {seed}", patient=f"p{seed // 2}")
    return store


ALL = [Vouched(name, 0, tuple(range(5))) for name in ("liver", "spleen")]
SOME = [Vouched("liver", 0, (1, 2)), Vouched("spleen", 0, (2, 3))]


def voxels(path: Path) -> np.ndarray:
    return read_image(path).voxels


def test_nnunet_gets_images_labels_and_an_ignore_label_where_nobody_vouches(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", ALL, SOME)
    done = list(export_nnunet(store, tmp_path / "Dataset501"))
    assert isinstance(done[-1], Progress)
    facts = json.loads((tmp_path / "Dataset501" / "dataset.json").read_text())
    assert facts["labels"] == {"background": 0, "liver": 1, "spleen": 2, "ignore": 3}
    assert (facts["numTraining"], facts["channel_names"], facts["file_ending"]) == (2, {"0": "CT"}, ".nii.gz")
    whole, part = store.cases()
    truth = np.select([pair()[1].mask("liver"), pair()[1].mask("spleen")], [1, 2], 0)
    assert np.array_equal(voxels(tmp_path / "Dataset501/labelsTr" / f"{whole.id}.nii.gz"), truth)
    expected = np.full_like(truth, 3)
    expected[2] = truth[2]  # the only slice on which both are vouched for
    assert np.array_equal(voxels(tmp_path / "Dataset501/labelsTr" / f"{part.id}.nii.gz"), expected)
    image = read_volume(tmp_path / "Dataset501/imagesTr" / f"{part.id}_0000.nii.gz")
    assert np.array_equal(image.voxels_kji, pair(1)[0].voxels_kji)


def test_a_damaged_case_is_named_and_the_others_are_exported(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", ALL, SOME)
    good, bad = store.cases()
    (bad.folder / "case.json").write_text("{")
    said = [event.text for event in export_nnunet(store, tmp_path / "out") if isinstance(event, Log)]
    assert len(said) == 1
    assert said[0].startswith("Left out: ")
    assert bad.id in said[0]
    assert [path.name for path in (tmp_path / "out" / "labelsTr").iterdir()] == [f"{good.id}.nii.gz"]


def test_without_gaps_there_is_no_ignore_label(tmp_path: Path) -> None:
    list(export_nnunet(store_of(tmp_path / "store", ALL), tmp_path / "out", ["spleen"]))
    facts = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert facts["labels"] == {"background": 0, "spleen": 1}


def test_monai_gets_a_datalist_with_vouched_masks_and_folds_by_patient(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", ALL, SOME, ALL)
    list(export_monai(store, tmp_path / "out"))
    datalist = json.loads((tmp_path / "out" / "datalist.json").read_text())
    assert datalist["labels"] == {"0": "background", "1": "liver", "2": "spleen"}
    folds = [entry["fold"] for entry in datalist["training"]]
    assert folds[0] == folds[1] != folds[2]
    entry = datalist["training"][1]
    assert np.array_equal(voxels(tmp_path / "out" / entry["vouched"])[:, 0, 0], [0, 0, 1, 0, 0])
    assert all((tmp_path / "out" / entry[part]).is_file() for part in ("image", "label"))


def test_pairs_come_in_and_bad_ones_are_named(tmp_path: Path) -> None:
    pairs = []
    for seed in range(3):
        volume, labels = pair(seed)
        write_volume(volume, tmp_path / f"{seed}.nii.gz")
        write_segmentation(labels, tmp_path / f"{seed}-labels.nii.gz")
        image = tmp_path / f"{seed}.nii.gz"
        pairs.append(Pair(image, tmp_path / f"{seed}-labels.nii.gz", f"case {seed}.nii.gz", "p"))
    (tmp_path / "1-labels.nii.gz").write_bytes(b"rubbish")
    store = CaseStore(tmp_path / "store")
    events = list(import_pairs(store, [*pairs, pairs[0]]))
    assert [e.name for e in events if isinstance(e, Case)] == ["case 0", "case 2"]
    said = [e.text for e in events if isinstance(e, Log)]
    assert said[0].startswith("case 1.nii.gz was skipped")
    assert "already in the store" in said[1]
    assert store.cases()[0].vouched_slices("liver") == 5
    assert [e.done for e in events if isinstance(e, Progress)] == [1, 2, 3, 4]


def test_slices_that_nnunet_is_told_to_ignore_come_back_as_not_vouched_for(tmp_path: Path) -> None:
    volume, labels = pair(0)
    store = CaseStore(tmp_path / "store")
    store.add(volume, labels, [Vouched("liver", 0, (2,))], name="p1")
    list(export_nnunet(store, tmp_path / "Dataset501", ["liver"]))
    (found,) = find_cases(tmp_path / "Dataset501")
    assert isinstance(found.image, Path)
    assert isinstance(found.labels, Path)
    again = CaseStore(tmp_path / "again")
    list(import_pairs(again, [Pair(found.image, found.labels, found.name, "p", found.names, found.ignored)]))
    (case,) = again.cases()
    assert [segment.name for segment in case.segments] == ["liver"]
    assert [(v.axis, v.indices) for v in case.vouched] == [(0, (2,))]


def test_a_pair_whose_ct_is_stored_1024_too_high_is_kept_and_named(tmp_path: Path) -> None:
    labels = np.zeros((6, 20, 24), np.uint8)
    labels[2:4, 8:12, 8:16] = 1
    stored = np.where(np.arange(24) < 5, 24, 1064).astype(np.int16) * np.ones(labels.shape, np.int16)
    write_volume(Volume(stored, np.eye(4)), tmp_path / "ct.nii.gz")
    write_segmentation(
        Segmentation(labels, np.eye(4), (Segment("liver", 1, (1.0, 0.0, 0.0)),)), tmp_path / "liver.seg.nrrd"
    )
    events = import_pairs(
        CaseStore(tmp_path / "store"),
        [Pair(tmp_path / "ct.nii.gz", tmp_path / "liver.seg.nrrd", "ct.nii.gz")],
    )
    case, said = (event for event in events if isinstance(event, Case | Log))
    assert isinstance(case, Case)
    assert isinstance(said, Log)
    assert case.modality == "MR"
    assert said.text.startswith(
        "ct.nii.gz is kept as MR, but looks like a CT whose values are stored 1024 too high"
    )


def test_a_dicom_seg_becomes_a_case(tmp_path: Path) -> None:
    volume = write_series(tmp_path / "series")
    write_dicom_seg(two_organs(volume), tmp_path / "series", tmp_path / "seg.dcm")
    case = import_dicom_seg(CaseStore(tmp_path / "store"), tmp_path / "seg.dcm", tmp_path / "series")
    assert np.array_equal(case.segmentation().mask("liver"), two_organs(volume).mask("liver"))


def a_case_of_the_series(store: CaseStore, folder: Path, patient: str) -> Case:
    """One of a DICOM folder and a SEG on it, which name a patient."""
    volume = write_series(folder / "series")
    change_tags(folder / "series", PatientID=patient)
    write_dicom_seg(two_organs(volume), folder / "series", folder / "liver.dcm")
    return import_dicom_seg(store, folder / "liver.dcm", folder / "series")


def test_cases_of_one_dicom_patient_are_kept_together_without_telling_who_it_is(tmp_path: Path) -> None:
    keys = []
    for n, patient in enumerate(("MRN-4711", "MRN-4711", "MRN-4712", None)):
        (tmp_path / f"{n}").mkdir()
        case = a_case_of_the_series(CaseStore(tmp_path / f"store{n}"), tmp_path / f"{n}", patient)
        keys.append(case.patient)
        kept = [p.read_bytes() for p in (tmp_path / f"store{n}").rglob("*.json")]
        assert kept
        assert not any(b"MRN" in text for text in kept)
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


@pytest.mark.parametrize("export", [export_nnunet, export_monai])
def test_what_cannot_be_exported_is_said_before_anything_is_written(tmp_path: Path, export: object) -> None:
    store = store_of(tmp_path / "store", ALL)
    for folder, segments, sentence in (
        (tmp_path, None, "exists already"),
        (tmp_path / "out", ["pancreas"], "No case has a segment 'pancreas'"),
    ):
        with pytest.raises(InputError, match=sentence):
            drain(export(store, folder, segments), lambda event: None)  # type: ignore[operator]
    with pytest.raises(InputError, match="holds nothing to export"):
        drain(export(CaseStore(tmp_path / "empty"), tmp_path / "out"), lambda event: None)  # type: ignore[operator]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("export", [export_nnunet, export_monai])
def test_a_case_without_a_slice_vouched_for_of_all_segments_is_left_out_and_named(
    tmp_path: Path, export: Callable[..., Iterator[Progress | Log]]
) -> None:
    apart = [Vouched("liver", 0, (1,)), Vouched("spleen", 0, (3,))]
    store = store_of(tmp_path / "store", ALL, apart)
    said = [event.text for event in export(store, tmp_path / "both") if isinstance(event, Log)]
    assert said == ["Left out: case 1 has no slice that is vouched for of all of liver, spleen."]
    images = {path.name for path in (tmp_path / "both").rglob("*.nii.gz")}
    whole, part = store.cases()
    assert any(whole.id in name for name in images)
    assert not any(part.id in name for name in images)
    assert not [e for e in export(store, tmp_path / "liver", ["liver"]) if isinstance(e, Log)]
    with pytest.raises(InputError, match="vouched for of all of liver, spleen; name fewer with --segments"):
        list(export(store_of(tmp_path / "only", apart), tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("export", [export_nnunet, export_monai])
def test_an_export_that_breaks_off_leaves_nothing_and_may_be_asked_for_again(
    tmp_path: Path, export: Callable[[CaseStore, Path], Iterator[Progress]]
) -> None:
    store = store_of(tmp_path / "store", ALL, SOME)
    given_up = export(store, tmp_path / "out")
    next(given_up)
    given_up.close()
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    second = store.cases()[1]
    kept = second.volume_path.read_bytes()
    second.volume_path.unlink()
    with pytest.raises(InputError, match="is gone"):
        list(export(store, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    second.volume_path.write_bytes(kept)
    assert len(list(export(store, tmp_path / "out"))) == 2
    assert (tmp_path / "out").is_dir()
