"""The case store: nothing half-written, nothing lost, two programs at once."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from medssl.cases import Case, CaseStore, Vouched, vouch_for_all, vouched_voxels
from medssl.errors import InputError, StorageError
from medssl.segmentation import Segment, Segmentation
from medssl.volume import Volume, write_volume

OBLIQUE = np.array([[0.9, -0.3, 0.0, 5.1], [0.31, 0.93, 0.0, -7.7], [0.0, 0.0, 2.5, 1 / 3], [0, 0, 0, 1]])
OBLIQUE[:3, 1] = np.cross(OBLIQUE[:3, 2] / 2.5, OBLIQUE[:3, 0])


def a_volume(seed: int = 0, name: str = "ct") -> Volume:
    voxels = np.random.default_rng(seed).integers(-1000, 1000, (6, 8, 10)).astype(np.int16)
    return Volume(voxels, OBLIQUE, name)


def an_annotation(volume: Volume, size: int = 4) -> Segmentation:
    labels = np.zeros(volume.shape_kji, np.uint8)
    labels[2, 1 : 1 + size, 1:5] = 1
    labels[3, 1 : 1 + size, 5:7] = 3
    segments = (Segment("liver", 1, (0.5, 0.25, 0.0)), Segment("spleen", 3, (0.0, 0.5, 1.0)))
    return Segmentation(labels, volume.ijk_to_ras, segments)


VOUCHED = (Vouched("liver", 0, (2,)), Vouched("spleen", 0, (3, 2), "propagated"))


def add(store: CaseStore, seed: int = 0, name: str = "") -> Case:
    volume = a_volume(seed)
    return store.add(volume, an_annotation(volume), VOUCHED, name=name)


def test_a_case_comes_back_as_it_was_added(tmp_path: Path) -> None:
    volume = a_volume()
    codes = {"liver": "SCT^10200004^Liver"}
    CaseStore(tmp_path / "store").add(volume, an_annotation(volume), VOUCHED, name="Case 1", codes=codes)
    (case,) = CaseStore(tmp_path / "store").cases()
    assert (case.name, case.revision, case.modality) == ("Case 1", 1, "CT")
    assert case.codes == codes
    assert case.vouched == (Vouched("liver", 0, (2,)), Vouched("spleen", 0, (2, 3), "propagated"))
    assert np.array_equal(case.volume().voxels_kji, volume.voxels_kji)
    assert np.allclose(case.volume().ijk_to_ras, volume.ijk_to_ras, atol=1e-4)
    assert np.array_equal(case.segmentation().labels_kji, an_annotation(volume).labels_kji)
    assert case.segments == an_annotation(volume).segments
    assert case.history[0].what == "added: 1 slice of liver drawn, 2 slices of spleen propagated"


def test_a_file_that_holds_another_volume_cannot_be_referred_to(tmp_path: Path) -> None:
    write_volume(a_volume(seed=9), tmp_path / "ct.nii.gz")
    store = CaseStore(tmp_path / "store")
    with pytest.raises(InputError, match="does not hold the volume of the case"):
        store.add(a_volume(), an_annotation(a_volume()), VOUCHED, reference=tmp_path / "ct.nii.gz")
    assert not store.cases()


def test_a_volume_may_be_referred_to_where_it_lies(tmp_path: Path) -> None:
    volume, path = a_volume(), tmp_path / "ct.nii.gz"
    write_volume(volume, path)
    store = CaseStore(tmp_path / "store")
    from medssl.volume import read_volume

    case = store.add(read_volume(path), an_annotation(volume), VOUCHED, reference=path)
    assert not (case.folder / "volume.nii.gz").exists()
    assert np.array_equal(case.volume().voxels_kji, volume.voxels_kji)
    write_volume(a_volume(seed=9), path)
    with pytest.raises(InputError, match="no longer the volume"):
        case.volume()
    path.unlink()
    with pytest.raises(InputError, match="gone from"):
        case.volume()


def test_an_update_replaces_labels_and_vouched_slices_and_is_remembered(tmp_path: Path) -> None:
    store = CaseStore(tmp_path)
    case = add(store)
    larger = an_annotation(a_volume(), size=6)
    after = store.update(case.id, larger, [*VOUCHED, Vouched("liver", 2, (4,))], "corrected")
    assert after.revision == 2
    assert [entry.what for entry in after.history][1:] == ["corrected"]
    assert np.array_equal(after.segmentation().labels_kji, larger.labels_kji)
    assert after.vouched_slices("liver") == 2
    assert after.fingerprint != case.fingerprint


def test_a_reader_that_is_one_revision_behind_still_finds_its_labels(tmp_path: Path) -> None:
    store = CaseStore(tmp_path)
    case = add(store)
    before = case.segmentation().labels_kji
    for size in (5, 6, 7):
        behind = store.cases()[0]
        expected = behind.segmentation().labels_kji
        store.update(case.id, an_annotation(a_volume(), size), VOUCHED)
        assert np.array_equal(behind.segmentation().labels_kji, expected)
    assert not np.array_equal(store.case(case.id).segmentation().labels_kji, before)
    assert len(list(case.folder.glob("labels-*"))) == 2


def test_the_fingerprint_ignores_labels_nobody_vouches_for(tmp_path: Path) -> None:
    store = CaseStore(tmp_path)
    case = add(store)
    labels = an_annotation(a_volume()).labels_kji.copy()
    labels[5, 2:4, 2:4] = 1
    same = Segmentation(labels, OBLIQUE, an_annotation(a_volume()).segments)
    assert store.update(case.id, same, VOUCHED).fingerprint == case.fingerprint
    labels[2, 7, 7] = 1
    changed = Segmentation(labels, OBLIQUE, same.segments)
    assert store.update(case.id, changed, VOUCHED).fingerprint != case.fingerprint


def test_a_removed_case_can_be_restored(tmp_path: Path) -> None:
    store = CaseStore(tmp_path)
    case = add(store, name="patient 7")
    removed = store.remove(case.id)
    assert store.cases() == []
    assert store.restore(removed) == case
    store.remove(case.id)
    add(store)
    with pytest.raises(InputError, match="in the store again"):
        store.restore(removed.parent / next(removed.parent.iterdir()).name)


def test_the_same_volume_is_not_taken_twice(tmp_path: Path) -> None:
    store = CaseStore(tmp_path)
    add(store, name="first")
    with pytest.raises(InputError, match="already in the store as case first"):
        add(store, name="second")


@pytest.mark.parametrize(
    ("vouched", "sentence"),
    [
        ([], "No slice is vouched for"),
        ([Vouched("liver", 0, (6,))], "Slice 6 of liver does not exist; there are 0 to 5"),
        ([Vouched("liver", 1, (-1, 2))], "Slice -1 of liver does not exist; there are 0 to 7"),
        ([Vouched("pancreas", 0, (1,))], "has no segment 'pancreas'"),
    ],
)
def test_what_cannot_be_vouched_for_is_refused_and_leaves_nothing(
    tmp_path: Path, vouched: list[Vouched], sentence: str
) -> None:
    store, volume = CaseStore(tmp_path), a_volume()
    with pytest.raises(InputError, match=sentence):
        store.add(volume, an_annotation(volume), vouched)
    assert list(tmp_path.iterdir()) == []


def test_adding_a_case_reads_no_other_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CaseStore(tmp_path)
    first, looked_at, whole = add(store, 0), [], CaseStore.case

    def watched(self: CaseStore, case_id: str) -> Case:
        looked_at.append(case_id)
        return whole(self, case_id)

    monkeypatch.setattr(CaseStore, "case", watched)
    second = add(store, 1)
    assert set(looked_at) <= {second.id}
    assert store.find(first.volume_hash) == first


def test_an_annotation_on_another_grid_is_refused(tmp_path: Path) -> None:
    volume = a_volume()
    moved = Segmentation(an_annotation(volume).labels_kji, np.eye(4), an_annotation(volume).segments)
    with pytest.raises(InputError):
        CaseStore(tmp_path).add(volume, moved, VOUCHED)


def test_a_folder_with_other_things_is_not_taken_for_a_store(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(InputError, match="not a case store"):
        CaseStore(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    CaseStore(tmp_path)
    (tmp_path / "store.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(InputError, match="another version"):
        CaseStore(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        None,
        {"name": ["bad"]},
        {"codes": ["T-62000"]},
        {"history": [3]},
        {"segments": [{"name": "liver", "label": None, "color_rgb": [1, 0, 0]}]},
        {"vouched": [{"segment": ["liver"], "axis": 0, "indices": [1], "origin": "drawn"}]},
        {"vouched": [{"segment": "liver", "axis": 7, "indices": [1], "origin": "drawn"}]},
    ],
)
def test_a_damaged_case_is_named_and_the_others_are_listed(
    tmp_path: Path, damage: dict[str, object] | None
) -> None:
    store = CaseStore(tmp_path)
    good, bad = add(store, 1, "good"), add(store, 2, "bad")
    facts = json.loads((bad.folder / "case.json").read_text())
    (bad.folder / "case.json").write_text("{" if damage is None else json.dumps({**facts, **damage}))
    said: list[str] = []
    assert [case.id for case in store.cases(lambda log: said.append(log.text))] == [good.id]
    assert len(said) == 1
    assert bad.id in said[0]


@pytest.mark.parametrize("case_id", ["../cases", "", ".", "none"])
def test_an_id_cannot_lead_out_of_the_store(tmp_path: Path, case_id: str) -> None:
    store = CaseStore(tmp_path)
    add(store)
    with pytest.raises(InputError):
        store.case(case_id)


def test_no_space_leaves_the_case_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CaseStore(tmp_path)
    case = add(store)

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="No space left"):
        store.update(case.id, an_annotation(a_volume(), 6), VOUCHED)
    monkeypatch.undo()
    assert store.case(case.id) == case
    assert np.array_equal(case.segmentation().labels_kji, an_annotation(a_volume()).labels_kji)


def test_a_store_whose_locks_cannot_be_taken_is_said_not_to_be_writable(tmp_path: Path) -> None:
    store = CaseStore(tmp_path)
    case = add(store)
    (tmp_path / "locks" / f"{case.id}.lock").mkdir()
    with pytest.raises(StorageError, match=r"could not be written .* choose another"):
        store.remove(case.id)
    assert store.case(case.id) == case


_UPDATE_FOREVER = """
import sys, itertools
sys.path.insert(0, {here!r})
from test_cases import CaseStore, VOUCHED, a_volume, an_annotation
store = CaseStore({store!r})
print("ready", flush=True)
for n in itertools.count():
    store.update({case!r}, an_annotation(a_volume(), 2 + n % 6), VOUCHED)
"""


def test_a_program_killed_while_it_writes_damages_nothing(tmp_path: Path) -> None:
    store = CaseStore(tmp_path)
    case = add(store)
    code = _UPDATE_FOREVER.format(here=str(Path(__file__).parent), store=str(tmp_path), case=case.id)
    for wait_s in (0.0, 0.013, 0.031):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(wait_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        now = store.case(case.id)
        assert now.segmentation().mask("liver").any()
        store.update(case.id, an_annotation(a_volume()), VOUCHED)  # the dead program's lock is gone


def test_what_a_killed_program_had_half_written_goes_after_a_day_and_not_while_it_may_be_at_work(
    tmp_path: Path,
) -> None:
    store = CaseStore(tmp_path)
    add(store)
    old, young = (tmp_path / "cases" / name for name in (".ct-1.0123abcd", ".ct-2.0123abcd"))
    for draft in (old, young):
        draft.mkdir()
        (draft / "volume.nii.gz").write_bytes(b"half")
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    add(store, seed=1)
    assert not old.exists()
    assert young.exists()
    assert len(store.cases()) == 2


def _update_often(store: str, case_id: str) -> None:
    for size in range(2, 7):
        CaseStore(store).update(case_id, an_annotation(a_volume(), size), VOUCHED)


def test_two_programs_that_write_at_once_lose_no_revision(tmp_path: Path) -> None:
    case = add(CaseStore(tmp_path))
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_update_often, args=(str(tmp_path), case.id)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    after = CaseStore(tmp_path).case(case.id)
    assert after.revision == 11
    assert len(after.history) == 11


def _add_case(store: str, seed: int, name: str) -> None:
    with contextlib.suppress(InputError):  # the other one was first
        add(CaseStore(store), seed, name)


def test_programs_that_begin_a_store_at_once_lose_no_case_and_take_no_volume_twice(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    asked = [(0, "a"), (0, "b"), (1, "c"), (2, "d")]
    writers = [context.Process(target=_add_case, args=(str(tmp_path / "new"), *one)) for one in asked]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0, 0]
    cases = CaseStore(tmp_path / "new").cases()
    assert {case.volume_hash for case in cases} == {a_volume(seed).content_hash for seed in range(3)}
    assert len(cases) == 3


def test_looking_into_a_store_that_is_not_there_makes_none(tmp_path: Path) -> None:
    store = CaseStore(tmp_path / "typo")
    assert store.cases() == []
    with pytest.raises(InputError, match="There is no case 'x'; the store holds none"):
        store.case("x")
    with pytest.raises(InputError, match="There is no removed case 'x'; those there are: none"):
        store.restore("x")
    assert not (tmp_path / "typo").exists()


def test_vouched_voxels_are_the_union_of_slices_over_the_axes() -> None:
    vouched = [Vouched("a", 0, (1,)), Vouched("a", 2, (0, 3)), Vouched("b", 1, (2,))]
    known = vouched_voxels((3, 4, 5), vouched, "a")
    expected = np.array([[[k == 1 or i in (0, 3) for i in range(5)] for _ in range(4)] for k in range(3)])
    assert np.array_equal(known, expected)


def test_a_finished_segmentation_is_vouched_for_everywhere() -> None:
    volume = a_volume()
    for v in vouch_for_all(an_annotation(volume)):
        assert vouched_voxels(volume.shape_kji, [v], v.segment).all()


def test_what_nobody_vouches_for_does_not_eat_into_a_slice_that_was_drawn(tmp_path: Path) -> None:
    """A kidney carried across a slice of the liver; on the slice that it was drawn on, it has what the two share."""
    store = CaseStore(tmp_path)
    case = add(store)
    before = case.segmentation()
    labels = np.zeros(before.shape_kji, np.uint8)
    labels[1:4, 2:5, 3:8] = 1
    kidney = Segmentation(labels, OBLIQUE, (Segment("kidney", 1, (0.2, 0.2, 0.9)),))

    found = store.update(case.id, kidney, [Vouched("kidney", 0, (3,))], keep_others=True).segmentation()

    np.testing.assert_array_equal(found.mask("liver")[2], before.mask("liver")[2])
    np.testing.assert_array_equal(found.mask("kidney")[2], (labels[2] == 1) & ~before.mask("liver")[2])
    np.testing.assert_array_equal(found.mask("kidney")[3], labels[3] == 1)
    np.testing.assert_array_equal(found.mask("spleen")[3], before.mask("spleen")[3] & (labels[3] == 0))


def test_another_segmentation_of_a_volume_leaves_what_the_case_knew_already(tmp_path: Path) -> None:
    store = CaseStore(tmp_path)
    case = add(store)
    before = case.segmentation()
    labels = np.zeros(before.shape_kji, np.uint8)
    labels[2, 6:8, 6:8] = 1
    kidney = Segmentation(labels, OBLIQUE, (Segment("kidney", 1, (0.2, 0.2, 0.9)),))
    after = store.update(case.id, kidney, [Vouched("kidney", 0, (2,))], keep_others=True)
    assert {v.segment for v in after.vouched} == {"kidney", *(v.segment for v in case.vouched)}
    found = after.segmentation()
    np.testing.assert_array_equal(found.mask("kidney"), labels == 1)
    for name in before.names:
        np.testing.assert_array_equal(found.mask(name), before.mask(name) & (labels == 0))
    assert after.history[-1].what == "updated: 1 slice of kidney drawn"
    again = store.update(case.id, an_annotation(a_volume(), size=6), VOUCHED, keep_others=True)
    assert set(again.segmentation().names) == {"kidney", *before.names}
    np.testing.assert_array_equal(
        again.segmentation().mask("liver"), an_annotation(a_volume(), size=6).mask("liver")
    )
