"""Tables of the slices that show an organ: made from label maps or by hand, and laid on prepared scans."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from medssl.datasets.data import UnlabelledVolumes
from medssl.datasets.input_contract import InputContract
from medssl.datasets.presence import (
    Presence,
    presence_from_labels,
    read_presence,
    with_presence,
    write_presence,
)
from medssl.datasets.volume_cache import prepare_volumes
from medssl.errors import InputError
from medssl.events import Log, Progress
from medssl.segmentation import Segment, Segmentation, default_color, write_segmentation
from medssl.volume import Volume, write_volume

SEGMENTS = (Segment("liver", 1, default_color(1)), Segment("spleen", 2, default_color(2)))


def put_case(
    folder: Path, seed: int, liver: slice, orientation: int = 1, named: tuple[int, ...] = (0, 1)
) -> None:
    """A CT with the liver on some of its 12 file slices; orientation -1 stores them from head to foot."""
    voxels = np.full((12, 20, 22), -1000, np.int16)
    voxels[:, 5:15, 4:18] = np.random.default_rng(seed).integers(0, 90, (12, 10, 14))
    affine = np.diag([2.0, 2.0, 5.0 * orientation, 1.0])
    labels = np.zeros(voxels.shape, np.uint8)
    labels[liver, 7:10, 6:9] = 1
    labels[3:5, 12:14, 6:9] = 2
    if 0 not in named:
        labels[labels == 1] = 0
    folder.mkdir(parents=True)
    write_volume(Volume(voxels, affine), folder / "ct.nii.gz")
    segments = tuple(SEGMENTS[n] for n in named)
    write_segmentation(Segmentation(labels, affine, segments), folder / "label.nii.gz")


def logged(into: list[str], event: Progress | Log) -> None:
    if isinstance(event, Log):
        into.append(event.text)


def test_the_table_of_label_maps_names_first_and_last_slice(tmp_path: Path) -> None:
    put_case(tmp_path / "a", 1, slice(4, 9))
    put_case(tmp_path / "b", 2, slice(0, 2), orientation=-1)
    put_case(tmp_path / "c", 3, slice(0, 0))
    rows = presence_from_labels(tmp_path, ["liver"])
    assert [(row.scan, row.slices) for row in rows] == [
        ("a/ct.nii.gz", (4, 8)),
        ("b/ct.nii.gz", (0, 1)),
        ("c/ct.nii.gz", None),
    ]
    write_presence(rows, tmp_path / "presence.csv")
    assert read_presence(tmp_path / "presence.csv") == rows


def test_a_scan_that_is_there_twice_has_one_line(tmp_path: Path) -> None:
    put_case(tmp_path / "a", 1, slice(4, 9))
    put_case(tmp_path / "again", 1, slice(4, 8))
    said: list[str] = []
    rows = presence_from_labels(tmp_path, ["liver"], on_event=partial(logged, said))
    assert said == ["again/ct.nii.gz was left out: it holds the voxels of a/ct.nii.gz."]
    write_presence(rows, tmp_path / "table.csv")
    assert read_presence(tmp_path / "table.csv") == rows


def test_several_names_are_one_organ(tmp_path: Path) -> None:
    put_case(tmp_path / "a", 1, slice(6, 9))
    (row,) = presence_from_labels(tmp_path, ["liver", "spleen"])
    assert row.slices == (3, 8)


def test_the_table_lies_on_the_prepared_grid(tmp_path: Path) -> None:
    data = tmp_path / "data"
    put_case(data / "a", 1, slice(4, 9))
    put_case(data / "b", 2, slice(0, 2), orientation=-1)
    rows = presence_from_labels(data, ["liver"])
    same = with_presence(prepare_volumes(data, InputContract(), tmp_path / "cache"), rows)
    assert [np.flatnonzero(same.presence(n)).tolist() for n in range(2)] == [[4, 5, 6, 7, 8], [10, 11]]
    half = InputContract(spacing_kji_mm=(10.0, None, None))
    coarse = with_presence(prepare_volumes(data, half, tmp_path / "cache"), rows)
    assert [np.flatnonzero(coarse.presence(n)).tolist() for n in range(2)] == [[2, 3, 4], [5]]


def test_a_scan_is_recognised_under_another_name_by_its_id(tmp_path: Path) -> None:
    data = tmp_path / "data"
    put_case(data / "a", 1, slice(4, 9))
    volumes = prepare_volumes(data, InputContract(), tmp_path / "cache")
    elsewhere = [Presence("somewhere/else.mha", (2, 3), volumes.scans[0].id)]
    assert np.flatnonzero(with_presence(volumes, elsewhere).presence(0)).tolist() == [2, 3]


def arrays(count: int = 3) -> UnlabelledVolumes:
    return UnlabelledVolumes.from_arrays([np.full((8, 4, 4), n, np.int16) for n in range(count)])


def test_scans_that_the_table_does_not_know_are_left_out_and_named() -> None:
    heard: list[str] = []
    rows = [Presence("scan 0", (3, 5)), Presence("scan 2", None)]
    volumes = with_presence(arrays(), rows, lambda event: logged(heard, event))
    assert [scan.name for scan in volumes.scans] == ["scan 0", "scan 2"]
    assert volumes.presence(0).tolist() == [False] * 3 + [True] * 3 + [False] * 2
    assert not volumes.presence(1).any()
    assert heard == ["Left out, as the presence table does not name them: scan 1."]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [Presence("other", (1, 2))],
            "knows none of the scans, e.g. not scan 0; its first line is for other",
        ),
        ([Presence("scan 1", None)], "no scan shows the organ"),
        ([Presence("scan 1", (2, 8))], "slices 2 to 8 of scan 1, which has 8"),
    ],
)
def test_a_table_that_does_not_fit_is_one_sentence(rows: list[Presence], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        with_presence(arrays(), rows)


def test_a_table_written_by_hand_may_leave_out_ids_and_turn_the_slices_round(tmp_path: Path) -> None:
    table = tmp_path / "presence.csv"
    table.write_text("scan,first,last\nscan 0,5,3\nscan 1,,\n")
    volumes = with_presence(arrays(2), read_presence(table))
    assert np.flatnonzero(volumes.presence(0)).tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no rows"),
        ("scan,first,last\na,1,\n", "Line 2 of presence.csv must name a scan"),
        ("scan,first,last\na,one,2\n", "has one and 2 for slices"),
        ("scan,first,last\na,-1,2\n", "Slices count from 0"),
        ("scan,first,last\na,1,2\na,3,4\n", "names a in several lines"),
        ("name,begin,end\na,1,2\n", "must name a scan"),
    ],
)
def test_a_damaged_table_says_where(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "presence.csv").write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_presence(tmp_path / "presence.csv")


def test_a_missing_table_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_presence(tmp_path / "nowhere.csv")


def test_what_a_label_map_does_not_name_is_unknown_unless_said_to_be_absent(tmp_path: Path) -> None:
    put_case(tmp_path / "a", 1, slice(4, 9))
    put_case(tmp_path / "b", 2, slice(0, 0), named=(1,))
    heard: list[str] = []
    rows = presence_from_labels(tmp_path, ["liver"], on_event=lambda event: logged(heard, event))
    assert [row.scan for row in rows] == ["a/ct.nii.gz"]
    assert heard == ["Left out, as liver is not among the labels: b/ct.nii.gz."]
    rows = presence_from_labels(tmp_path, ["liver"], missing_is_absent=True)
    assert [row.slices for row in rows] == [(4, 8), None]


def test_an_organ_that_nothing_shows_is_an_error_that_lists_what_there_is(tmp_path: Path) -> None:
    put_case(tmp_path / "a", 1, slice(4, 9))
    with pytest.raises(InputError, match=r"shows pancreas; the labels there are: liver, spleen"):
        presence_from_labels(tmp_path, ["pancreas"])
