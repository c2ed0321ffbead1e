"""What training takes is told before it is taken, with the figures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from medssl import memory
from medssl.backbones import build_backbone
from medssl.errors import NotEnoughMemory
from medssl.few_labels.finetuning import FinetuneSettings
from medssl.few_labels.footprint import memory_explained, require_memory, training_bytes
from medssl.few_labels.segmenter import Segmenter
from medssl.runs.run_folder import RunFolder

CPU = torch.device("cpu")
SETTINGS = FinetuneSettings(steps=4, batch=4)


def need(batch: int, size: tuple[int, int] = (32, 32)) -> int:
    network = Segmenter(build_backbone("unet2d_4"), 2)
    return training_bytes(network, replace(SETTINGS, batch=batch), size, 1, CPU)


def test_memory_grows_with_the_batch_and_with_the_size() -> None:
    per_sample = need(2) - need(1)
    assert need(9) - need(8) == pytest.approx(per_sample, abs=1)
    assert need(2, (30, 25)) == need(2)  # the sides are rounded up
    assert need(2, (64, 64)) - need(1, (64, 64)) == pytest.approx(4 * per_sample, rel=0.05)


def test_looking_leaves_the_network_and_the_random_numbers_as_they_were() -> None:
    network = Segmenter(build_backbone("unet2d_4"), 2).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    training_bytes(network, SETTINGS, (32, 32), 1, CPU)
    assert torch.equal(state, torch.get_rng_state())
    assert not network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_second_run_that_does_not_fit_is_refused_with_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    from medssl.home import runs_folder

    first = RunFolder.create(runs_folder() / "first", "finetune", {})
    monkeypatch.setattr(memory, "available_on", lambda device: 3_000_000_000)
    with first.occupied():
        require_memory(2_900_000_000, SETTINGS, CPU)
        with pytest.raises(NotEnoughMemory) as refused:
            require_memory(3_100_000_000, SETTINGS, CPU)
    sentence = str(refused.value)
    assert "needs about 3.1 GB of memory and 3.0 GB is free on cpu" in sentence
    assert "a smaller --batch than 4" in sentence
    assert str(first.path) in sentence


def test_a_full_gpu_is_said_in_one_sentence() -> None:
    with pytest.raises(NotEnoughMemory, match="A step of 4 samples does not fit"), memory_explained(SETTINGS):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")
