"""Weights are read without running code, go in whole, and are written whole."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from medssl.checkpoints import load_into, read_checkpoint, read_weights, write_checkpoint
from medssl.errors import ModelError, StorageError
from safetensors.torch import save_file
from torch import nn


class CreatesAFile:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, int]]:
        return os.open, (str(self.path), os.O_CREAT)


def tensors() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.int16)}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert torch.equal(first[name], second[name])


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_a_state_dict_is_found_where_official_files_put_it(tmp_path: Path, key: str | None) -> None:
    path = tmp_path / "weights.pth"
    torch.save({key: tensors(), "epoch": 3} if key else tensors(), path)
    assert_same(read_weights(path), tensors())


def test_the_format_of_old_pytorch_files_is_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(tensors(), path, _use_new_zipfile_serialization=False)
    assert_same(read_weights(path), tensors())


def test_safetensors_from_elsewhere_are_read(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "weights.safetensors")
    assert_same(read_weights(tmp_path / "weights.safetensors"), tensors())
    assert read_checkpoint(tmp_path / "weights.safetensors")[1] == {}


@pytest.mark.parametrize("nested", [True, False])
def test_a_torch_file_that_wants_to_run_code_is_refused_and_not_run(tmp_path: Path, nested: bool) -> None:
    evil = CreatesAFile(tmp_path / "created")
    torch.save({"model": {**tensors(), "c": evil}} if nested else evil, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match=r"evil\.pth wants to run program code, so it was not opened"):
        read_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_plain_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(CreatesAFile(tmp_path / "created"), protocol))
    with pytest.raises(ModelError) as refused:
        read_weights(path)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"just some text\n", b"PK\x03\x04 cut short", b"\x80\x02}q", b"\xff" * 100, b"{}" * 50],
)
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name} is damaged or not a .* file; get it again\.$"):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("header", ["3", "[]", "null", "{"])
def test_a_header_that_is_no_table_is_refused_in_one_sentence(tmp_path: Path, header: str) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "weights.safetensors", {"medssl": header})
    with pytest.raises(ModelError, match=r"weights\.safetensors is damaged"):
        read_checkpoint(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_cut_in_the_middle_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    many = {"a": torch.zeros(1000)}
    save_file(many, path) if name.endswith("safetensors") else torch.save(many, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError, match="is damaged"):
        read_weights(path)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match=f"{name} does not exist"):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"model": {"names": "none"}}])
def test_a_file_without_weights_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="holds no weights"):
        read_weights(tmp_path / "weights.pth")


def test_a_checkpoint_gives_back_tensors_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    shared = torch.arange(4.0)
    written = {**tensors(), "shared": shared, "again": shared, "transposed": torch.rand(2, 3).T}
    meta = {"method": "tracker", "step": 7, "window": [40, 400], "note": "Grad \N{DEGREE SIGN}"}
    write_checkpoint(path, written, meta)
    read, read_meta = read_checkpoint(path)
    assert_same(dict(sorted(read.items())), dict(sorted(written.items())))
    assert read_meta == meta
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("place", [0.5, 1.0])
def test_a_checkpoint_in_which_a_single_number_has_changed_is_refused(tmp_path: Path, place: float) -> None:
    path = tmp_path / "checkpoint.safetensors"
    write_checkpoint(path, {"a": torch.arange(64.0), "whole": torch.tensor(3), "none": torch.zeros(0, 2)}, {})
    content = bytearray(path.read_bytes())
    numbers = 64 * 4 + 8
    content[-1 - int((numbers - 1) * (1.0 - place))] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"checkpoint\.safetensors is damaged: it no longer holds what was"):
        read_checkpoint(path)


@pytest.mark.parametrize("meta", [{}, {"step": 7, "of": {"b": 0.1, "a": ["x"]}}])
def test_equal_checkpoints_are_equal_files(tmp_path: Path, meta: dict[str, object]) -> None:
    for number in range(6):
        write_checkpoint(tmp_path / f"{number}.safetensors", tensors(), meta)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert read_checkpoint(tmp_path / "0.safetensors")[1] == meta


def test_a_checkpoint_of_an_earlier_program_without_a_checksum_is_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_file({"a": torch.arange(4.0)}, path, metadata={"medssl": '{"step": 1}'})
    assert read_checkpoint(path)[1] == {"step": 1}


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    write_checkpoint(path, tensors(), {"step": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_checkpoint(path, tensors(), {"step": object()})
    with pytest.raises(StorageError):
        write_checkpoint(tmp_path / "no such folder" / "c.safetensors", tensors(), {})
    assert read_checkpoint(path)[1] == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_transfer_is_reported_tensor_by_tensor() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4))
    weights = {
        "0.weight": torch.ones(2, 3),
        "0.bias": torch.ones(2),
        "1.weight": torch.ones(9, 9),
        "head": torch.ones(1),
    }
    before = module[1].bias.detach().clone()
    report = load_into(module, weights, min_fraction=0.4)
    assert report.transferred == ("0.weight", "0.bias")
    assert report.mismatched == ("1.weight",)
    assert report.missing == ("1.bias",)
    assert report.unexpected == ("head",)
    assert report.fraction == pytest.approx(8 / 20)
    assert bool((module[0].weight == 1).all())
    assert torch.equal(module[1].bias, before)
    assert str(report) == (
        "2 tensors (40.0% of the model) transferred; 1 missing (1.bias); 1 mismatched (1.weight);"
        " 1 unexpected (head)"
    )


def test_too_few_fitting_weights_fail_loudly_and_change_nothing() -> None:
    module = nn.Linear(3, 2)
    before = {n: t.clone() for n, t in module.state_dict().items()}
    with pytest.raises(ModelError, match=r"do not belong to this model, 100% must fit.*1 missing \(weight\)"):
        load_into(module, {"bias": torch.ones(2)})
    assert_same(module.state_dict(), before)


def test_weights_take_the_type_of_the_model() -> None:
    module = nn.Linear(3, 2).to(torch.bfloat16)
    load_into(module, {"weight": torch.ones(2, 3), "bias": torch.ones(2)})
    assert module.weight.dtype == torch.bfloat16
