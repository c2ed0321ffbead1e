"""Promptable weights of the user's own are known by their name everywhere; what does not fit leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from medssl import model_files, registry
from medssl.checkpoints import read_checkpoint, write_checkpoint
from medssl.errors import InputError, ModelError
from medssl.foundation import load_image_predictor, load_tracker
from medssl.foundation.nano import NanoTracker
from medssl.foundation.nano_image import NanoImagePredictor
from medssl.foundation.nano_model import NanoConfig, NanoModel, load_prompted, prompt_tensors
from medssl.foundation.own import add_own
from medssl.foundation.protocols import ImagePredictor
from medssl.messages import Predict
from medssl.prompts import SlicePrompt
from medssl.registry import DEFAULT_MODEL, ModelEntry, find_entry, known_models, model_path
from medssl.serving.engine import EngineBackend
from medssl.volume import WINDOWS, Volume

BOX = SlicePrompt(0, 1, box_xyxy_px=np.array([10, 10, 30, 25], np.float32))
CONFIG = NanoConfig(image_size=64, embed_dim=16, model_dim=32, memory_dim=16, edge_width=8)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's model folder, empty."""
    monkeypatch.setenv("MEDSSL_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


def nano_file(path: Path, seed: int, knows_prompts: bool = True) -> Path:
    """A small model with random weights, as a training writes it."""
    torch.manual_seed(seed)
    tracker, prompted = NanoModel(CONFIG).state_dict(), NanoModel(CONFIG).state_dict()
    meta = {"config": CONFIG.to_meta()}
    if knows_prompts:
        write_checkpoint(path, {**tracker, **prompt_tensors(tracker, prompted)}, {**meta, "prompts": {}})
    else:
        write_checkpoint(path, tracker, meta)
    return path


def test_a_run_of_ones_own_answers_as_its_file_does(tmp_path: Path) -> None:
    path = nano_file(tmp_path / "checkpoint.safetensors", seed=1)
    slice_hu = np.random.default_rng(0).normal(0, 200, (80, 90)).astype(np.float32)
    box = SlicePrompt(0, 3, box_xyxy_px=np.array([20, 20, 60, 50], np.float32))

    def answer(predictor: ImagePredictor) -> np.ndarray:
        predictor.set_image(slice_hu, WINDOWS["soft-tissue"], (1.0, 1.0))
        return predictor.predict(box).logits

    expected = answer(NanoImagePredictor(load_prompted(path, torch.device("cpu"))))
    entry = add_own(path, "ours")
    path.unlink()  # what was imported is a copy

    np.testing.assert_array_equal(answer(load_image_predictor("ours", "cpu")), expected)
    assert isinstance(load_tracker("ours", "cpu"), NanoTracker)
    assert entry == find_entry("ours")
    assert (entry.kind, entry.image_size, entry.own, entry.bundled) == ("nano", 64, True, False)
    assert known_models() == (*registry.load_registry(), entry), "the program's own list stays as it is"


def test_a_model_that_only_tracks_is_taken_and_says_so_when_it_is_prompted(tmp_path: Path) -> None:
    entry = add_own(nano_file(tmp_path / "checkpoint.safetensors", seed=1, knows_prompts=False), "tracks")
    assert not entry.answers_prompts
    assert entry.purpose.startswith("Propagation only")
    load_tracker("tracks", "cpu")
    with pytest.raises(ModelError, match="teach it clicks and boxes with"):
        load_image_predictor("tracks", "cpu")


def test_a_fine_tuned_model_of_another_package_is_loaded_like_the_one_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[ModelEntry] = []
    monkeypatch.setattr(
        "medssl.foundation.own.open_image_predictor", lambda entry, place: opened.append(entry)
    )
    torch.save({"model": {"weight": torch.zeros(3)}}, tmp_path / "tuned.pt")

    entry = add_own(tmp_path / "tuned.pt", "our-sam", like="sam2.1-hiera-tiny")

    assert opened == [entry]  # as a whole, before it appeared
    official = find_entry("sam2.1-hiera-tiny")
    assert (entry.kind, entry.config, entry.image_size) == (
        official.kind,
        official.config,
        official.image_size,
    )
    assert model_path(entry).read_bytes() == (tmp_path / "tuned.pt").read_bytes()


def refused(path: Path, name: str = "ours", like: str = "") -> str:
    before = known_models()
    with pytest.raises((ModelError, InputError)) as told:
        add_own(path, name, like)
    assert known_models() == before
    return str(told.value)


def test_what_does_not_fit_leaves_nothing_behind(tmp_path: Path, home: Path) -> None:
    whole = nano_file(tmp_path / "whole.safetensors", seed=1)
    tensors, meta = read_checkpoint(whole)
    write_checkpoint(tmp_path / "half.safetensors", dict(list(tensors.items())[:40]), meta)
    torch.save({"model": {"weight": torch.zeros(3)}}, tmp_path / "tuned.pt")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-5000])

    assert "must fit" in refused(tmp_path / "half.safetensors")
    assert "must fit" in refused(tmp_path / "tuned.pt", like="sam-vit-b")
    assert "damaged" in refused(cut)
    assert "does not exist" in refused(tmp_path / "nowhere.safetensors")
    assert "--like sam2.1-hiera-tiny" in refused(tmp_path / "tuned.pt")
    assert "no small model" in refused(tmp_path / "tuned.pt", like=DEFAULT_MODEL)
    assert "leave --like out" in refused(whole, like="sam-vit-b")
    assert "There is no model 'sam9'" in refused(tmp_path / "tuned.pt", like="sam9")
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_a_name_that_is_taken_stays_what_it_is(tmp_path: Path) -> None:
    first = add_own(nano_file(tmp_path / "first.safetensors", seed=1), "ours")
    second = nano_file(tmp_path / "second.safetensors", seed=2)
    assert "medssl models delete ours" in refused(second)
    assert "There is a model sam-vit-b already" in refused(second, name="sam-vit-b")
    assert registry.sha256_of(registry.verified_path(first)) == first.sha256


def test_weights_that_are_not_understood_are_not_written_over(tmp_path: Path, home: Path) -> None:
    entry = add_own(nano_file(tmp_path / "first.safetensors", seed=1), "ours")
    path = home / "own" / "ours.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "of a newer version": 1}))
    second = nano_file(tmp_path / "second.safetensors", seed=2)
    for name in ("ours", "Ours"):
        assert "already" in refused(second, name=name)
    assert registry.sha256_of(model_path(entry)) == entry.sha256


def test_a_name_with_a_dot_and_a_file_without_a_suffix_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medssl.foundation.own.open_image_predictor", lambda entry, place: None)
    torch.save({"model": {"weight": torch.zeros(3)}}, tmp_path / "weights")
    assert add_own(tmp_path / "weights", "ours.v2", like="sam-vit-b") == find_entry("ours.v2")


def test_other_weights_under_the_same_name_are_loaded_anew(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).normal(0, 200, (3, 40, 40)).astype(np.int16)
    engine, volume = EngineBackend(), Volume(voxels, np.eye(4))
    request = Predict(volume.content_hash, "", BOX, (40, 400), "ours", "cpu")
    answers = []
    for seed in (1, 2):
        entry = add_own(nano_file(tmp_path / "checkpoint.safetensors", seed), "ours")
        engine.predict(volume, request)
        answers.append(engine._predictors["ours", "cpu"])
        assert engine.models == ("ours",)
        model_files.remove_own(entry)
    assert answers[0] is not answers[1]


def test_what_is_taken_out_is_kept_and_its_name_is_free(tmp_path: Path) -> None:
    path = nano_file(tmp_path / "checkpoint.safetensors", seed=1)
    entry = add_own(path, "ours")
    removed = model_files.remove_own(entry)
    with pytest.raises(ModelError, match="There is no model 'ours'"):
        find_entry("ours")
    (kept,) = removed.glob("*.safetensors")
    assert kept.read_bytes() == path.read_bytes()
    again = add_own(path, "ours")
    assert again.sha256 == entry.sha256
    model_files.remove_own(again)
    assert len(list(removed.iterdir())) == 2
    with pytest.raises(ModelError, match="one of the program's"):
        model_files.remove_own(find_entry(DEFAULT_MODEL))


@pytest.mark.parametrize(
    "damage", ["no json", "no file", "no size", "another kind", "another name", "outside", "weights gone"]
)
def test_a_damaged_entry_hides_itself_and_nothing_else(tmp_path: Path, home: Path, damage: str) -> None:
    add_own(nano_file(tmp_path / "checkpoint.safetensors", seed=1), "other")
    entry = add_own(nano_file(tmp_path / "checkpoint.safetensors", seed=1), "ours")
    path = home / "own" / "ours.json"
    values = json.loads(path.read_text())
    (tmp_path / "home" / "ours.safetensors").write_bytes(b"reached")
    content = {
        "no json": "{",
        "no file": json.dumps({**values, "file": None}),
        "no size": json.dumps({**values, "size_bytes": "large"}),
        "another kind": json.dumps({**values, "kind": "shell"}),
        "another name": json.dumps({**values, "id": "theirs"}),
        "outside": json.dumps({**values, "file": "../ours.safetensors"}),
        "weights gone": json.dumps(values),
    }
    path.write_text(content[damage])
    if damage == "weights gone":
        model_path(entry).unlink()
    assert [known.id for known in known_models() if known.own] == ["other"]


def test_weights_that_are_changed_on_disk_are_found_out(tmp_path: Path) -> None:
    entry = add_own(nano_file(tmp_path / "checkpoint.safetensors", seed=1), "ours")
    content = bytearray(model_path(entry).read_bytes())
    content[-1] ^= 1
    model_path(entry).write_bytes(content)
    with pytest.raises(ModelError, match="wrong SHA-256"):
        load_tracker("ours", "cpu")
