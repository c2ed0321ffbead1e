"""Regions are contrasted, and labels noted, over all processes (methods.md 6, DDP).

This file is also the program that each of the processes runs: python test_distributed_masked.py RANK FOLDER.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from medssl.learning.distributed import own_rows, rank, world_size
from medssl.methods.medssl_vit import region_contrast
from medssl.methods.patch_labels import PatchLabels
from torch import Tensor
from torch.nn import functional as F

WORLD = 2
REGIONS = 8


def computed() -> dict[str, Tensor]:
    """Contrast, its gradient at a shared weight as data-parallel training averages it, and the labels of all."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, REGIONS, 4, dtype=torch.float64, generator=generator)
    first, second = (own_rows(part) for part in rows)
    keys = own_rows(torch.arange(REGIONS) % 3)
    valid = own_rows(torch.arange(REGIONS) != 1)  # the processes hold unequally many valid regions
    weight = torch.eye(4, dtype=torch.float64, requires_grad=True)
    embeddings = (F.normalize(part @ weight, dim=1) for part in (first, second))
    loss = region_contrast(*embeddings, keys, valid, temperature=0.2)
    loss.backward()
    labels = PatchLabels()
    labels.note(keys + 10 * rank(), torch.full((len(keys), 2), rank()))
    return {
        "loss": averaged(loss.detach()),
        "gradient": averaged(weight.grad),
        "noted": labels.get_extra_state()["noted_keys"],
    }


def averaged(tensor: Tensor) -> Tensor:
    total = tensor.clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total / world_size()


def main(number: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=number, world_size=WORLD)
    torch.save(computed(), folder / f"{number}.pt")
    dist.destroy_process_group()


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    commands = [[sys.executable, __file__, str(number), str(tmp_path)] for number in range(WORLD)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    together = computed()
    apart = [torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in range(WORLD)]
    for result in apart:
        torch.testing.assert_close(result["loss"], together["loss"])
        torch.testing.assert_close(result["gradient"], together["gradient"])
        assert result["noted"].tolist() == [0, 1, 2, 0, 11, 12, 10, 11]


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
