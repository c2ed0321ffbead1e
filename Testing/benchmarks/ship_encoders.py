"""Puts pre-trained encoders beside the shipped default: half precision, listed in the registry, with their cards.

    .venv/bin/python Testing/benchmarks/ship_encoders.py runs/polycl-m runs/mae ...

A run is refused if it has seen a scan of a held-out patient (holdout.json; --data says where their scans are) or if
its weights would take more than 25 MB. The header names the held-out cases, which are public. The cards' table is
printed; it belongs into pretrained/ENCODERS.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from medssl.checkpoints import write_checkpoint
from medssl.datasets.grid import scan_id
from medssl.errors import InputError, MedSSLError
from medssl.learning.transfer import EncoderFile, read_encoder
from medssl.methods import METHODS
from medssl.registry import (
    EncoderEntry,
    bundled_folder,
    load_encoders,
    load_registry,
    sha256_of,
    write_registry,
)
from medssl.runs.run_folder import RunFolder
from medssl.volume import read_volume

HOLDOUT = Path(__file__).with_name("holdout.json")
LARGEST_BYTES = 25_000_000
LICENSE = "Apache-2.0"


def held_out_scans(data: Path) -> dict[str, str]:
    """Names of the held-out scans by their ids."""
    lists = json.loads(HOLDOUT.read_text("utf-8"))
    names = [name for listed in lists.values() if isinstance(listed, list) for name in listed]
    files = [file for name in names for file in sorted((data / name).glob("?[tr].nii.gz"))]
    if not files:
        raise InputError(f"None of the held-out cases is in {data}; give the folder that was trained on.")
    return {scan_id(read_volume(file)): file.parent.name for file in files}


def ship(run: RunFolder, held_out: dict[str, str], target: Path) -> tuple[EncoderEntry, EncoderFile]:
    """Write one run's encoder in half precision.

    Raises:
        InputError: it has seen a held-out scan, or is too large to ship.
    """
    encoder = read_encoder(run.checkpoint)
    seen = sorted(held_out[scan] for scan in set(encoder.data) & set(held_out))
    if seen:
        raise InputError(f"{run.path} has seen {len(seen)} held-out scans, e.g. {seen[0]}; exclude them.")
    halves = {name: t.half() if t.dtype == torch.float32 else t for name, t in encoder.tensors.items()}
    path = target / f"encoder-{encoder.method}.safetensors"
    write_checkpoint(path, halves, {**encoder.meta, "excluded": sorted(set(held_out.values()))})
    path.chmod(0o644)
    if path.stat().st_size > LARGEST_BYTES:
        path.unlink()
        raise InputError(f"The encoder of {run.path} takes more than {LARGEST_BYTES / 1e6:.0f} MB.")
    entry = EncoderEntry(
        method=encoder.method,
        file=path.name,
        size_bytes=path.stat().st_size,
        sha256=sha256_of(path),
        license=LICENSE,
    )
    return entry, encoder


def card(entry: EncoderEntry, encoder: EncoderFile, run: RunFolder) -> str:
    """One row of the table of cards."""
    metrics = run.metrics()
    first, last = metrics[0], metrics[-1]
    info = METHODS[entry.method].info
    seconds = sum(
        (later.step - earlier.step) * encoder.meta["recipe"]["batch"] / later.samples_per_second
        for earlier, later in itertools.pairwise(metrics)
    )
    return (
        f"| {info.title} | `{entry.method}` | {encoder.backbone} | {'x'.join(map(str, encoder.contract.size))} |"
        f" {encoder.step} | {len(encoder.data)} | {first.values['loss']:.3f} to {last.values['loss']:.3f} |"
        f" {seconds / 60:.0f} | {entry.size_bytes / 1e6:.1f} |"
        f" {'which slices show the organ' if info.supervision == 'presence' else 'none'} |"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="finished run folders of medssl pretrain")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of the scans, to know the held-out ones"
    )
    options = parser.parse_args(argv)
    target = bundled_folder()
    try:
        held_out = held_out_scans(options.data)
        entries = {entry.method: entry for entry in load_encoders()}
        rows = []
        for path in options.runs:
            run = RunFolder.open(path)
            entry, encoder = ship(run, held_out, target)
            entries[entry.method] = entry
            rows.append(card(entry, encoder, run))
        # A new one comes last: RESULTS_STUDY.md says which is best, and the best is put first by hand.
        write_registry(target / "registry.json", load_registry(), list(entries.values()))
    except MedSSLError as error:
        print(f"ship_encoders: {error}", file=sys.stderr)
        return 1
    print("| method | name | backbone | size | steps | scans | loss | minutes | MB | told |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
