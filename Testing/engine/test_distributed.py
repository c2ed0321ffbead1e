"""Two processes on halves of a batch compute what one process computes on all of it.

This file is also the program that each of the processes runs: python test_distributed.py RANK FOLDER.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from medssl.backbones import build_backbone
from medssl.datasets.input_contract import InputContract
from medssl.learning.distributed import JointBatchNorm1d, gather, own_rows, rank, world_size
from medssl.methods.base import Moment
from medssl.methods.byol import BYOL, BYOLOptions
from medssl.methods.contrastive import Contrastive
from medssl.methods.moco import MoCo, MoCoOptions
from medssl.methods.polycl import PolyCLOptions, PolyCLS
from medssl.methods.simclr import SimCLR, SimCLROptions
from medssl.methods.supcon import SupCon, SupConOptions
from torch import Tensor, nn

WORLD = 2
SLICES = 4
METHODS: dict[str, tuple[type[Contrastive], object]] = {
    "polycl": (PolyCLS, PolyCLOptions()),
    "simclr": (SimCLR, SimCLROptions()),
    "simclr asymmetric": (SimCLR, SimCLROptions(asymmetric=True)),
    "supcon": (SupCon, SupConOptions()),
    "moco": (MoCo, MoCoOptions(hidden=16, queue=6)),
    "byol": (BYOL, BYOLOptions(hidden=16)),
}


def joined_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(5, SLICES, 1, 32, 32, dtype=torch.float64, generator=generator)
    return {
        "anchor": images[0],
        "positive": images[1],
        "negative": images[2],
        "fallbacks": torch.zeros(SLICES),
        "views": images[3:].transpose(0, 1),
        "present": torch.tensor([True, False, False, True]),
    }


def computed(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Loss and gradients of two steps of every method, the gradients averaged over the processes."""
    results: dict[str, Tensor] = {}
    for name, (kind, options) in METHODS.items():
        torch.manual_seed(0)
        method = kind(build_backbone("unet2d_4"), InputContract(size=(32, 32)), options).double().train()
        for module in method.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # its draws differ between a whole batch and halves of one
        for step in range(2):
            moment = Moment(step, 2, 0, 1, rank=rank())
            method.zero_grad()
            loss = method(batch, moment)["loss"]
            loss.backward()
            results[f"{name} {step} loss"] = averaged(loss.detach())
            for weight, tensor in method.named_parameters():
                if tensor.grad is not None:
                    results[f"{name} {step} {weight}"] = averaged(tensor.grad)
            method.after_step(moment)
        results |= {f"{name} {buffer}": tensor for buffer, tensor in method.named_buffers()}
    return results


def averaged(tensor: Tensor) -> Tensor:
    """Mean over the processes, as DistributedDataParallel takes it of gradients."""
    total = tensor.clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total / world_size()


def main(number: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=number, world_size=WORLD)
    results = computed({name: own_rows(tensor) for name, tensor in joined_batch().items()})
    torch.save(results, folder / f"{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What the two processes computed."""
    folder = tmp_path_factory.mktemp("processes")
    commands = [[sys.executable, __file__, str(number), str(folder)] for number in range(WORLD)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(WORLD)]


@pytest.fixture(scope="module")
def together() -> dict[str, Tensor]:
    """What one process computes."""
    return computed(joined_batch())


@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradients_of_two_processes_are_those_of_one(
    name: str, apart: list[dict[str, Tensor]], together: dict[str, Tensor]
) -> None:
    """methods.md 6, DDP."""
    mine = {key: tensor for key, tensor in together.items() if key.startswith(f"{name} ")}
    assert f"{name} 1 loss" in mine
    assert len(mine) > 40
    for other in apart:
        for key, tensor in mine.items():
            assert torch.allclose(other[key], tensor, rtol=1e-6, atol=1e-9), key


def test_negatives_of_the_other_process_matter(together: dict[str, Tensor]) -> None:
    halves = [
        {name: tensor[part] for name, tensor in joined_batch().items()} for part in (slice(2), slice(2, 4))
    ]
    losses = [computed(half)["simclr 0 loss"] for half in halves]
    assert abs(float(sum(losses)) / 2 - float(together["simclr 0 loss"])) > 0.1


def test_one_process_is_the_whole_world() -> None:
    rows = torch.randn(3, 2)
    assert (rank(), world_size()) == (0, 1)
    assert gather(rows) is rows
    assert torch.equal(own_rows(rows), rows)


def test_the_joint_batch_norm_is_the_ordinary_one_in_one_process() -> None:
    rows = torch.randn(6, 3)
    joint, ordinary = JointBatchNorm1d(3), nn.BatchNorm1d(3)
    for _ in range(2):
        assert torch.equal(joint(rows), ordinary(rows))
        joint.eval()
        ordinary.eval()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
