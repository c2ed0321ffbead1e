"""A page sees the folders it was given, and no way out of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from medssl.errors import InputError
from medssl.web.folders import Folders


@pytest.fixture
def given(tmp_path: Path) -> Folders:
    inside = tmp_path / "given"
    (inside / "series").mkdir(parents=True)
    for name in ("ct.nii.gz", "organs.seg.nrrd", "notes.txt", ".hidden.nii"):
        (inside / name).write_text("")
    (tmp_path / "secret.nii").write_text("")
    (inside / "way out").symlink_to(tmp_path)
    return Folders([inside])


def test_a_folder_lists_its_folders_and_what_can_be_opened(given: Folders) -> None:
    assert [entry.name for entry in given.entries(str(given.roots[0]))] == [
        "series",
        "ct.nii.gz",
        "organs.seg.nrrd",
    ]
    assert [entry.path for entry in given.entries()] == [str(given.roots[0])]


def test_of_a_file_the_folder_is_given(tmp_path: Path) -> None:
    (tmp_path / "ct.nii").write_text("")
    assert Folders([tmp_path / "ct.nii"]).roots == (tmp_path.resolve(),)


@pytest.mark.parametrize(
    "path", ["..", "../secret.nii", "series/../../secret.nii", "way out/secret.nii", "/etc"]
)
def test_no_path_leads_out(given: Folders, path: str) -> None:
    with pytest.raises(InputError, match="is not in a folder that was named"):
        given.resolve(str(given.roots[0] / path))


def test_above_a_root_is_the_list_of_roots(given: Folders) -> None:
    root = given.roots[0]
    assert given.parent(str(root / "series")) == str(root)
    assert given.parent(str(root)) == ""


def test_scans_to_pretrain_on_lie_in_a_folder_that_was_named(given: Folders, tmp_path: Path) -> None:
    root = given.roots[0]
    assert given.resolve_folder(f" {root / 'series'} ") == root / "series"
    with pytest.raises(InputError, match="is not in a folder that was named"):
        given.resolve_folder(str(tmp_path))
    with pytest.raises(InputError, match="is a file; name a folder"):
        given.resolve_folder(str(root / "ct.nii.gz"))
    with pytest.raises(InputError, match="Type the path of a folder"):
        given.resolve_folder("  ")


def test_what_cannot_be_listed_hides_itself_only(given: Folders) -> None:
    root = given.roots[0]
    before = given.entries(str(root))
    (root / "loop.nii").symlink_to("loop.nii")
    Path(os.fsdecode(os.fsencode(root) + b"/M\xfcller.nii.gz")).touch()
    assert given.entries(str(root)) == before


@pytest.mark.parametrize("name", ["a\0b.nii", "x" * 5000, "loop.nii"])
def test_what_can_be_no_path_is_one_sentence(given: Folders, name: str) -> None:
    (given.roots[0] / "loop.nii").symlink_to("loop.nii")
    with pytest.raises(InputError, match="cannot be reached"):
        given.resolve(str(given.roots[0] / name))
