"""Bad input: exit code 1, one sentence on stderr, no traceback, nothing written."""

from __future__ import annotations

import gzip
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from medssl.registry import find_entry
from medssl.segmentation import Segmentation, write_segmentation
from medssl.volume import Volume, write_volume


def _missing(case, folder: Path) -> str:
    return str(folder / "nowhere.nii.gz")


def _text(case, folder: Path) -> str:
    return _bytes(folder, b"this is a note, not an image\n")


def _truncated(case, folder: Path) -> str:
    return _bytes(folder, Path(case.ct).read_bytes()[:-2000])


def _cut_voxels(case, folder: Path) -> str:
    return _bytes(folder, gzip.compress(gzip.decompress(Path(case.ct).read_bytes())[:-5000]))


def _empty_file(case, folder: Path) -> str:
    return _bytes(folder, b"")


def _unknown_type(case, folder: Path) -> str:
    path = folder / "ct.jpeg2001"
    path.write_bytes(Path(case.ct).read_bytes())
    return str(path)


def _four_dimensional(case, folder: Path) -> str:
    return _image(
        folder, sitk.GetImageFromArray(np.zeros((2, 5, 6, 7), np.int16) + np.arange(7, dtype=np.int16))
    )


def _nan(case, folder: Path) -> str:
    voxels = case.volume.voxels_kji.astype(np.float32)
    voxels[3, 4, 5] = np.nan
    return _image(folder, sitk.GetImageFromArray(voxels))


def _constant(case, folder: Path) -> str:
    return _image(folder, sitk.GetImageFromArray(np.full((6, 7, 8), 40, np.int16)))


def _one_slice(case, folder: Path) -> str:
    return _image(folder, sitk.GetImageFromArray(case.volume.voxels_kji[:1]))


def _sheared(case, folder: Path) -> str:
    """A NIfTI file whose sform leans: SimpleITK cannot write one, so its header is patched."""
    raw = bytearray(gzip.decompress(Path(case.ct).read_bytes()))
    raw[252:256] = np.array([0, 1], "<i2").tobytes()  # qform off, sform on
    raw[280:328] = np.array([[2, 0, 0.8, 0], [0, 2, 0, 0], [0, 0, 3, 0]], "<f4").tobytes()
    return _bytes(folder, gzip.compress(bytes(raw)))


def _empty_folder(case, folder: Path) -> str:
    (folder / "dicom").mkdir()
    return str(folder / "dicom")


BAD_VOLUMES = [
    _missing,
    _text,
    _truncated,
    _cut_voxels,
    _empty_file,
    _unknown_type,
    _four_dimensional,
    _nan,
    _constant,
    _sheared,
    _empty_folder,
]


@pytest.mark.parametrize("make", BAD_VOLUMES, ids=lambda make: make.__name__.strip("_"))
@pytest.mark.parametrize("command", ["info", "propagate"])
def test_a_bad_volume(refused, small_case, tmp_path: Path, make: Callable[..., str], command: str) -> None:
    path = make(small_case, tmp_path)
    rest = [] if command == "info" else ["-a", small_case.annotation_path, "-o", tmp_path / "out.nii.gz"]
    assert Path(path).name in refused(command, path, *rest)


def test_a_volume_of_one_slice_cannot_be_propagated(refused, small_case, tmp_path: Path) -> None:
    path = _one_slice(small_case, tmp_path)
    labels = tmp_path / "labels.nii.gz"
    image = sitk.GetImageFromArray((small_case.volume.voxels_kji[:1] > 50).astype(np.uint8))
    sitk.WriteImage(image, str(labels))
    assert "slice" in refused(
        "propagate", path, "-a", labels, "-o", tmp_path / "out.nii.gz", "--axis", "axial"
    )


def test_an_annotation_of_another_shape(refused, small_case, tmp_path: Path) -> None:
    labels = small_case.annotation.labels_kji[:, :, :-1]
    message = _refuse_annotation(refused, small_case, tmp_path, labels)
    assert "shape" in message


def test_an_annotation_of_another_geometry(refused, small_case, tmp_path: Path) -> None:
    moved = small_case.annotation.ijk_to_ras.copy()
    moved[0, 3] += 30.0
    message = _refuse_annotation(refused, small_case, tmp_path, small_case.annotation.labels_kji, moved)
    assert "mm" in message


def test_an_empty_annotation(refused, small_case, tmp_path: Path) -> None:
    labels = np.zeros_like(small_case.annotation.labels_kji)
    assert "is empty" in _refuse_annotation(refused, small_case, tmp_path, labels)


def test_the_ct_given_as_its_own_annotation(refused, small_case, tmp_path: Path) -> None:
    assert "label" in refused("propagate", small_case.ct, "-a", small_case.ct, "-o", tmp_path / "out.nii.gz")


def test_a_finished_segmentation_given_as_annotation(refused, small_case, tmp_path: Path) -> None:
    volume = Volume(np.repeat(small_case.volume.voxels_kji, 3, axis=0), small_case.volume.ijk_to_ras)
    labels = np.repeat(small_case.truth.labels_kji, 3, axis=0)
    write_volume(volume, tmp_path / "tall.nii.gz")
    message = _refuse_annotation(refused, small_case, tmp_path, labels, ct=str(tmp_path / "tall.nii.gz"))
    assert "without a gap" in message


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--segment", "pancreas"], "pancreas"),
        (["--segment", "1"], "'1'"),
        (["--reference-slices", "pancreas:10"], "pancreas"),
        (["--reference-slices", "liver:3"], "Slice 3"),
        (["--reference-slices", "3"], "Slice 3"),
        (["--reference-slices", "ten"], "ten"),
        (["--reference-slices", "liver:10", "9"], "not both"),
        (["--range", "15:5"], "range"),
        (["--range", "5:100"], "100"),
        (["--model", "medssl-giant"], "medssl-giant"),
        (["--model", "sam2.1-hiera-large"], "sam2.1_hiera_large.pt"),
        (["--model", "sam-vit-b"], "cannot propagate"),
        (["--device", "abacus"], "abacus"),
        (["--series", "1.2.3"], "series"),
    ],
)
def test_an_option_that_does_not_fit(
    refused, small_case, tmp_path: Path, options: list[str], named: str
) -> None:
    arguments = ["propagate", small_case.ct, "-a", small_case.annotation_path, "-o", tmp_path / "out.nii.gz"]
    assert named in refused(*arguments, *options)


@pytest.mark.parametrize(("command", "model"), [("refine", "sam-vit-b"), ("propagate", "sam2.1-hiera-tiny")])
def test_a_model_file_that_runs_code_is_not_loaded(
    refused, small_case, own_home: Path, tmp_path: Path, command: str, model: str
) -> None:
    file = find_entry(model).file
    trap = _plant_trap(own_home / "models" / file, tmp_path)
    labels = ["-c", small_case.truth_path] if command == "refine" else ["-a", small_case.annotation_path]
    assert file in refused(command, small_case.ct, *labels, "-o", tmp_path / "out.nii.gz", "--model", model)
    assert not trap.exists()


def test_a_model_file_with_the_wrong_content_is_not_loaded(
    refused, small_case, own_home: Path, tmp_path: Path
) -> None:
    (own_home / "models").mkdir()
    (own_home / "models" / find_entry("sam-vit-b").file).write_bytes(b"other weights")
    arguments = ["refine", small_case.ct, "-c", small_case.truth_path, "-o", tmp_path / "out.nii.gz"]
    assert "SHA-256" in refused(*arguments, "--model", "sam-vit-b")


def test_a_pickle_that_runs_code_is_not_imported(refused, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    trap = _plant_trap(folder / "sam2.1_hiera_tiny.pt", tmp_path)
    assert "SHA-256" in refused("models", "import", folder)
    assert not trap.exists()


def test_training_does_not_start_from_a_pickle_that_runs_code(refused, tmp_path: Path) -> None:
    trap = _plant_trap(tmp_path / "weights.pth", tmp_path)
    arguments = [
        "train",
        "tracker",
        "--data",
        tmp_path / "nowhere",
        "--out",
        tmp_path / "weights.pth" / "run",
    ]
    refused(*arguments, "--start-from", tmp_path / "weights.pth")
    assert not trap.exists()


def test_models_of_a_folder_that_holds_none(refused, tmp_path: Path) -> None:
    assert str(tmp_path) in refused("models", "import", tmp_path)


def test_a_model_of_no_name(refused) -> None:
    assert "sam2.1-hiera-tiny" in refused("models", "download", "sam3")


@pytest.mark.parametrize(
    ("output", "named"),
    [
        ("out.txt", ".nii.gz"),
        ("nowhere/out.nii.gz", "does not exist"),
        ("folder.nii.gz", "is a folder"),
    ],
)
def test_an_output_that_cannot_be(refused, small_case, tmp_path: Path, output: str, named: str) -> None:
    (tmp_path / "folder.nii.gz").mkdir()
    arguments = ["propagate", small_case.ct, "-a", small_case.annotation_path]
    assert named in refused(*arguments, "-o", tmp_path / output)


def test_an_output_that_would_replace_the_input(refused, small_case, tmp_path: Path) -> None:
    ct = shutil.copy(small_case.ct, tmp_path / "ct.nii.gz")
    assert "also an input" in refused("propagate", ct, "-a", small_case.annotation_path, "-o", ct)


def test_an_output_that_would_rename_the_labels_of_an_input(refused, small_case, tmp_path: Path) -> None:
    labels = Path(shutil.copy(small_case.annotation_path, tmp_path / "a.nii.gz"))
    names = small_case.folder / "annotation.labels.json"
    shutil.copy(names, tmp_path / "a.labels.json")
    message = refused(
        "propagate", small_case.ct, "-a", labels, "-o", tmp_path / "a.nii", "--segment", "liver"
    )
    assert "would write a.labels.json" in message
    shutil.copy(small_case.annotation_path, tmp_path / "b.nii.gz")  # names no labels of its own
    assert "b.labels.json" in refused(
        "refine", small_case.ct, "-c", tmp_path / "b.nii.gz", "-o", tmp_path / "b.nii"
    )


def test_an_output_that_would_replace_what_it_is_measured_against(
    refused, small_case, tmp_path: Path
) -> None:
    truth = shutil.copy(small_case.truth_path, tmp_path / "truth.nii.gz")
    coarse = shutil.copy(small_case.truth_path, tmp_path / "coarse.seg.nrrd")
    assert "also an input" in refused(
        "refine", small_case.ct, "-c", small_case.truth_path, "--truth", truth, "-o", truth
    )
    given = ["--coarse", coarse, "--stages", tmp_path, "-o", tmp_path / "new.nii.gz"]
    assert "coarse.seg.nrrd is also an input" in refused("segment", small_case.ct, *given)


@pytest.mark.parametrize(
    ("unsure", "sentence"),
    [("ct.nii.gz", "also an input"), ("out.nii.gz", "also an input"), ("no/u.nii.gz", "does not exist"),
     ("u.txt", "unknown type")],
)  # fmt: skip
def test_an_uncertainty_map_that_cannot_be_is_refused_first(
    refused, small_case, tmp_path: Path, unsure: str, sentence: str
) -> None:
    ct = shutil.copy(small_case.ct, tmp_path / "ct.nii.gz")
    arguments = ["predict", ct, "--model", "any", "-o", tmp_path / "out.nii.gz"]
    assert sentence in refused(*arguments, "--uncertainty-map", tmp_path / unsure)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(refused, small_case, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    arguments = ["propagate", small_case.ct, "-a", small_case.annotation_path]
    assert "does not allow writing" in refused(*arguments, "-o", closed / "out.nii.gz")


def test_an_output_that_the_system_refuses(medssl, small_case) -> None:
    arguments = ["propagate", small_case.ct, "-a", small_case.annotation_path, "--segment", "spleen"]
    outcome = medssl(*arguments, "-o", "/proc/medssl.nii.gz")
    assert outcome.code == 1
    assert "could not be written" in outcome.err.splitlines()[-1]


def test_no_space_on_the_disk(small_case, tmp_path: Path) -> None:
    """A limit of 8 KiB on the size of files stands in for the full disk."""
    line = f"ulimit -f 8; exec {sys.executable} -m medssl.cli propagate {small_case.ct} -a {small_case.annotation_path}"
    command = ["bash", "-c", f"{line} --segment spleen -o {tmp_path}/out.nii"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("medssl: error: ")
    assert "could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_host_that_cannot_be_reached(
    refused, small_case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    ssh = bin_folder / "ssh"
    ssh.write_text("#!/bin/sh\necho 'ssh: Could not resolve hostname nowhere' >&2\nexit 255\n", "utf-8")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    arguments = ["propagate", small_case.ct, "-a", small_case.annotation_path, "-o", tmp_path / "out.nii.gz"]
    assert "Could not resolve hostname nowhere" in refused(*arguments, "--host", "nowhere")


def test_segments_that_do_not_match(refused, small_case, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed.nii.gz"
    shutil.copy(small_case.truth_path, renamed)
    assert "no segment name" in refused("evaluate", renamed, small_case.truth_path)


def test_a_ct_without_labels_for_the_demo(refused, small_case, tmp_path: Path) -> None:
    assert "--label" in refused("demo", "--ct", small_case.ct, "--out", tmp_path / "demo")


def test_an_error_nobody_foresaw_is_one_sentence_too(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str, series: str | None) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("medssl.volume.read_volume", broken)
    assert "RuntimeError: first line second line" in refused("info", "ct.nii.gz")


@pytest.fixture
def refused(medssl, tmp_path: Path) -> Callable[..., str]:
    """Run a command that must fail without a trace; returns its message."""

    def run(*arguments: object) -> str:
        before = _tree(tmp_path)
        outcome = medssl(*arguments)
        assert outcome.code == 1, outcome
        *progress, line = outcome.err.splitlines()
        assert all(re.match(r"\w+: +\d+ %", earlier) for earlier in progress)
        start = "medssl: error: "
        assert line.startswith(start)
        assert line[len(start)].isupper() or not line[len(start)].isalpha() or ".nii" in line
        assert outcome.out == ""
        assert _tree(tmp_path) == before
        return line

    return run


def _refuse_annotation(
    refused: Callable[..., str],
    case,
    folder: Path,
    labels: np.ndarray,
    ijk_to_ras: np.ndarray | None = None,
    ct: str | None = None,
) -> str:
    affine = case.annotation.ijk_to_ras if ijk_to_ras is None else ijk_to_ras
    path = folder / "other.nii.gz"
    write_segmentation(Segmentation(labels, affine, case.annotation.segments), path)
    return refused("propagate", ct or case.ct, "-a", path, "-o", folder / "out.nii.gz")


def _bytes(folder: Path, content: bytes) -> str:
    path = folder / "bad.nii.gz"
    path.write_bytes(content)
    return str(path)


def _image(folder: Path, image: sitk.Image) -> str:
    path = folder / "bad.nii.gz"
    sitk.WriteImage(image, str(path))
    return str(path)


class _Trap:
    """Pickles to a call that creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def _plant_trap(path: Path, folder: Path) -> Path:
    marker = folder / "code_was_run"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(_Trap(marker)))
    return marker


def _tree(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_two_label_maps_of_one_name_are_told_apart_by_their_folders(
    medssl, small_case, tmp_path: Path
) -> None:
    other = tmp_path / Path(small_case.truth_path).name
    labels = small_case.truth.labels_kji[:-1]
    write_segmentation(Segmentation(labels, small_case.truth.ijk_to_ras, small_case.truth.segments), other)
    outcome = medssl("evaluate", other, small_case.truth_path)
    assert outcome.code == 1
    assert f"{other} has shape" in outcome.err
    assert f"but {small_case.truth_path} has" in outcome.err
