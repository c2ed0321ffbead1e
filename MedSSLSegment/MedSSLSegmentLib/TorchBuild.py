"""Which build of torch fits the computer: each is for some NVIDIA drivers and GPUs, or for none."""

from __future__ import annotations

import shutil
import subprocess
import sys

from medssl.wire.processes import apart

__all__ = ["CPU", "indexOf", "torchBuild"]

CPU = "cpu"
INDEX = "https://download.pytorch.org/whl/"
CUDA_13_DRIVER, CUDA_13_GPU = 580, 7.5
"""First driver for CUDA 13, first compute capability it still knows (Turing)."""
BLACKWELL_GPU = 10.0
"""CUDA 12.6 does not know these yet."""
TIMEOUT_S = 10


def torchBuild() -> str:
    """Name of the build, as the addresses of its packages have it: "cpu", "cu126", "cu128" or "cu130".

    A computer whose nvidia-smi is missing, or finds no GPU, gets the build for processors.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return CPU
    query = [program, "--query-gpu=driver_version,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(
            query,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
            check=True,
            timeout=TIMEOUT_S,
            **apart(),
        )
    except (OSError, subprocess.SubprocessError):
        return CPU
    return _buildFor(answer.stdout)


def indexOf(build: str) -> str | None:
    """Address of the only packages of a build; None where the Python Package Index has them (macOS)."""
    return None if sys.platform == "darwin" else INDEX + build


def _buildFor(said: str) -> str:
    """The build for all GPUs that nvidia-smi lists, one line "driver, compute capability" each."""
    pairs = [line.split(",") for line in said.splitlines() if line.strip()]
    if not pairs:
        return CPU
    try:
        driver = min(int(pair[0].split(".")[0]) for pair in pairs)
        oldest, newest = (pick(float(pair[1]) for pair in pairs) for pick in (min, max))
    except (ValueError, IndexError):  # drivers that do not tell are old
        return "cu126"
    if driver >= CUDA_13_DRIVER and oldest >= CUDA_13_GPU:
        return "cu130"
    return "cu128" if newest >= BLACKWELL_GPU else "cu126"
