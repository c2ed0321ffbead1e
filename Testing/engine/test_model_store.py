"""The model store: every version kept, one in use, one file each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from medssl.checkpoints import read_checkpoint, read_weights, write_checkpoint
from medssl.datasets.input_contract import InputContract
from medssl.errors import InputError, ModelError, StorageError
from medssl.events import Log
from medssl.few_labels.model_store import ModelStore
from medssl.few_labels.segmenter import ModelInfo
from medssl.segmentation import Segment


def a_model(folder: Path, value: float = 1.0, dice: float = 0.8) -> Path:
    info = ModelInfo(
        backbone="unet2d_4",
        contract=InputContract(size=(64, 64)),
        segments=(Segment("liver", 1, (1.0, 0.0, 0.0)),),
        cases=("ab12",),
        dice={"liver": dice},
    )
    path = folder / f"trained-{value}.safetensors"
    write_checkpoint(path, {"w": torch.full((3,), value)}, info.to_json())
    return path


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """A store in which model "liver" has three versions."""
    store = ModelStore(tmp_path / "models")
    for value in (1.0, 2.0, 3.0):
        store.add(a_model(tmp_path, value, dice=value / 10), "liver")
    return store


def value_of(path: Path) -> float:
    return float(read_weights(path)["w"][0])


def test_the_newest_version_is_in_use_and_all_are_kept(store: ModelStore) -> None:
    (model,) = store.models()
    assert [version.number for version in model.versions] == [1, 2, 3]
    assert model.in_use.id == "liver:3"
    assert [version.info.dice["liver"] for version in model.versions] == [0.1, 0.2, 0.3]
    assert value_of(store.resolve("liver")) == 3.0
    assert value_of(store.resolve("liver:1")) == 1.0


def test_going_back_to_a_version_keeps_the_later_ones(store: ModelStore) -> None:
    store.use("liver:2")
    assert value_of(ModelStore(store.folder).resolve("liver")) == 2.0
    assert len(store.models()[0].versions) == 3


def test_a_version_after_a_roll_back_gets_a_new_number(store: ModelStore, tmp_path: Path) -> None:
    store.use("liver:1")
    assert store.add(a_model(tmp_path, 4.0), "liver").id == "liver:4"
    assert value_of(store.resolve("liver")) == 4.0


def test_models_that_are_kept_at_the_same_time_are_all_kept(store: ModelStore, tmp_path: Path) -> None:
    files = [a_model(tmp_path, 10.0 + n) for n in range(6)]
    with ThreadPoolExecutor(len(files)) as pool:
        kept = list(pool.map(lambda file: ModelStore(store.folder).add(file, "liver"), files))
    assert sorted(version.number for version in kept) == [4, 5, 6, 7, 8, 9]
    assert [value_of(version.path) for version in kept] == [value_of(file) for file in files]


def test_deleting_the_version_in_use_falls_back_to_the_newest_left(store: ModelStore) -> None:
    store.delete("liver:3")
    assert store.find("liver").id == "liver:2"
    assert value_of(store.folder / "removed" / "liver" / "v003.safetensors") == 3.0


def test_a_deleted_number_is_never_given_again(store: ModelStore, tmp_path: Path) -> None:
    store.delete("liver:3")
    assert store.add(a_model(tmp_path, 5.0), "liver").id == "liver:4"


def test_deleting_a_model_keeps_its_files_aside(store: ModelStore) -> None:
    store.delete("liver")
    assert store.models() == []
    assert len(list((store.folder / "removed" / "liver").iterdir())) == 3


def test_an_exported_version_can_be_imported_elsewhere(store: ModelStore, tmp_path: Path) -> None:
    store.export("liver:2", tmp_path / "for-a-colleague.safetensors")
    other = ModelStore(tmp_path / "other")
    added = other.add(tmp_path / "for-a-colleague.safetensors", "liver-from-a")
    assert value_of(added.path) == 2.0
    assert added.info == store.find("liver:2").info


def test_a_file_outside_the_store_can_be_named_by_its_path(store: ModelStore, tmp_path: Path) -> None:
    path = a_model(tmp_path, 7.0)
    assert store.resolve(str(path)) == path


@pytest.mark.parametrize(
    ("model", "sentence"),
    [("spleen", "the store holds liver"), ("liver:9", "it has 1, 2, 3"), ("liver:x", "no version x")],
)
def test_a_model_that_does_not_exist_is_named_with_those_that_do(
    store: ModelStore, model: str, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        store.resolve(model)


@pytest.mark.parametrize("name", ["", "../liver", "a/b", ".hidden", "removed", "a b"])
def test_a_name_that_is_not_safe_is_refused(store: ModelStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot name a model"):
        store.add(a_model(tmp_path), name)


def test_what_is_no_model_is_refused_and_leaves_nothing(store: ModelStore, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "encoder.safetensors", {"w": torch.zeros(1)}, {"kind": "encoder"})
    with pytest.raises(ModelError, match="no segmentation model"):
        store.add(tmp_path / "encoder.safetensors", "spleen")
    assert [model.name for model in store.models()] == ["liver"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"format_version": 2, "version": "7.0"},
            r"made by medssl 7\.0 and has the format 2, but.*update the program",
        ),
        ({"contract": "64 x 64"}, "input contract cannot be used"),
        ({"segments": "liver"}, "header is damaged"),
    ],
)
def test_a_model_this_program_cannot_use_is_not_kept(
    store: ModelStore, tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    path = a_model(tmp_path)
    weights, header = read_checkpoint(path)
    write_checkpoint(path, weights, {**header, **change})
    with pytest.raises(ModelError, match=sentence):
        store.add(path, "spleen")
    assert [model.name for model in store.models()] == ["liver"]


def test_the_oldest_models_which_do_not_say_their_format_are_still_read(
    store: ModelStore, tmp_path: Path
) -> None:
    path = a_model(tmp_path)
    weights, header = read_checkpoint(path)
    del header["format_version"]
    write_checkpoint(path, weights, header)
    assert store.add(path, "spleen").info.names == ("liver",)


def test_a_damaged_version_is_named_and_the_others_stay(store: ModelStore) -> None:
    (store.folder / "liver" / "v002.safetensors").write_bytes(b"rubbish")
    problems: list[Log] = []
    (model,) = store.models(problems.append)
    assert [version.number for version in model.versions] == [1, 3]
    assert "v002.safetensors" in problems[0].text


def test_no_other_version_is_taken_for_a_damaged_one_in_use(store: ModelStore) -> None:
    damaged = store.folder / "liver" / "v003.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:20])
    for asked in ("liver", "liver:3"):
        with pytest.raises(ModelError, match=r"liver:3 is damaged; go back with: medssl models use liver:2"):
            store.resolve(asked)
    assert store.in_use("liver") == "liver:3"
    store.use("liver:2")
    assert store.find("liver").id == "liver:2"
    store.delete("liver:3")
    with pytest.raises(InputError, match="has no version 3"):
        store.find("liver:3")


def test_a_version_with_a_changed_number_is_neither_exported_nor_added(
    store: ModelStore, tmp_path: Path
) -> None:
    damaged = store.folder / "liver" / "v003.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ModelError, match="no longer holds what was written"):
        store.export("liver", tmp_path / "out.safetensors")
    with pytest.raises(ModelError, match="no longer holds what was written"):
        store.add(damaged, "spleen")
    assert not (tmp_path / "out.safetensors").exists()
    assert [model.name for model in store.models()] == ["liver"]


def test_a_lost_choice_of_version_means_the_newest(store: ModelStore) -> None:
    store.use("liver:1")
    (store.folder / "liver" / "model.json").write_text("{")
    assert store.find("liver").id == "liver:3"


def test_an_export_to_a_folder_that_is_missing_says_so(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        store.export("liver", tmp_path / "nowhere" / "m.safetensors")


def test_looking_a_model_up_reads_no_other(store: ModelStore) -> None:
    other = store.folder / "spleen"
    other.mkdir()
    (other / "v001.safetensors").write_bytes(b"rubbish that must not be read")
    assert store.find("liver:2").number == 2
    store.delete("liver:2")
    with pytest.raises(InputError, match=r"No version of the model 'spleen' can be read: .*v001"):
        store.find("spleen")
