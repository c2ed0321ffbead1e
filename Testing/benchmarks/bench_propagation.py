"""Measure propagation: Dice per organ, time against the usual way, memory. `make bench DATA=folder` runs it.

A data folder holds one folder per case with `ct.nii.gz`, `label.nii.gz` and `labels.json` ({"1": "liver"}). Where it
holds the held-out cases of `holdout.json`, those are scored; any other folder of labelled CTs is scored whole. Without
a folder, phantoms are scored. Every measurement runs in a process of its own.

    bench_propagation.py --data FOLDER                      everything
    bench_propagation.py --data FOLDER --only accuracy --limit 4     a quick look
    bench_propagation.py --only speed                       needs no data

Writes RESULTS.md beside this file and the raw numbers to bench_output/results.json; sections that are not measured
this time are kept from the last.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import processor
from medssl.phantom import phantom_ct
from medssl.registry import DEFAULT_MODEL, find_entry, is_available
from protocol import data_root, held_out_cases
from tables import render

_HERE = Path(__file__).resolve().parent
_SECTIONS = ("accuracy", "speed", "memory")
_TITLES = {
    "head_neck": "Head and neck, held-out patients",
    "abdomen": "Abdomen slab, held-out patient",
    "same_patient_as_abdomen": "Vertebrae of the abdomen slab's patient, held out",
    "mr": "MR, for information: the default is made for CT",
}
_SAM2, _SAM2_SIZE = "sam2.1-hiera-tiny", 512
_PHANTOM_SEEDS = (9001, 9002, 9003, 9004)
_BASE_SHAPE_KJI, _BASE_SPACING_KJI_MM = (48, 512, 512), (5.0, 0.75, 0.75)
_LARGE_SLICES = 1000
_SEGMENTS = (1, 5)
_MEMORY_MULTIPLES = {_SAM2: (1, 2, 3), DEFAULT_MODEL: (8, 16, 24)}
"""How many times --slices the volumes have whose memory is compared."""
_FEATURE_BUDGET_BYTES = 32 * 2**20
"""For features of SAM 2 while memory is compared: few slices of them, so that the shortest volume fills it."""

Measure = Callable[..., dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> None:
    options = _arguments(argv)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    kept = output / "results.json"
    sections = json.loads(kept.read_text()) if kept.exists() else {}

    def measure(kind: str, **spec: Any) -> dict[str, Any]:
        return _in_own_process({"kind": kind, "threads": options.threads, **spec})

    for name in _SECTIONS:
        if options.only in (None, name):
            print(f"{name} ...", file=sys.stderr, flush=True)
            section = {"accuracy": _accuracy, "speed": _speed, "memory": _memory}[name](options, measure)
            sections[name] = {**_provenance(options), **section}
            kept.write_text(json.dumps(sections, indent=1))
    results = Path(options.results)
    results.write_text(render(sections))
    print(f"Wrote {results} and {kept}.")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of labelled CTs (or the environment variable MEDSSL_DATA)")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="model to score; `intensity` needs no weights")
    parser.add_argument("--only", choices=_SECTIONS, help="measure one section, keep the others")
    parser.add_argument("--limit", type=int, help="score only so many cases of each group; for a quick look")
    parser.add_argument(
        "--slices", type=int, default=32, help="slices of the timed volume (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default: all)")
    parser.add_argument("--output", default="bench_output", help="folder for the raw numbers")
    parser.add_argument("--results", default=str(_HERE / "RESULTS.md"), help="markdown file to write")
    return parser.parse_args(argv)


def _accuracy(options: argparse.Namespace, measure: Measure) -> dict[str, Any]:
    root = data_root(options.data)
    groups, peak = [], 0
    for title, spec in _case_groups(root, options.limit):
        result = measure("accuracy", model=options.model, **spec)
        groups.append({"title": title, "scores": result["scores"]})
        peak = max(peak, result["peak_bytes"])
    return {"groups": groups, "peak_bytes": peak}


def _case_groups(root: Path | None, limit: int | None) -> list[tuple[str, dict[str, Any]]]:
    if root is None:
        return [("Phantoms: no data folder was given", {"phantoms": list(_PHANTOM_SEEDS[:limit])})]
    present = {name: [c for c in cases if (root / c).is_dir()] for name, cases in held_out_cases().items()}
    groups = [(_TITLES[name], cases) for name, cases in present.items() if cases]
    if not groups:
        labelled = sorted(label.parent for label in root.glob("*/label.nii.gz"))
        groups = [("All labelled CTs", [case.name for case in labelled if (case / "ct.nii.gz").exists()])]
    if not any(cases for _, cases in groups):
        raise SystemExit(f"{root} has no folder with ct.nii.gz and label.nii.gz.")
    return [(title, {"data": str(root), "cases": cases[:limit]}) for title, cases in groups]


def _speed(options: argparse.Namespace, measure: Measure) -> dict[str, Any]:
    pairs, corrections = [], []
    with tempfile.TemporaryDirectory() as folder:
        base = _save_base(Path(folder))
        for model in (_SAM2, DEFAULT_MODEL):
            common = {"model": model, "size": _SAM2_SIZE, "base": base, "slices": options.slices}
            for segments in _SEGMENTS:
                usual, ours = (
                    measure("job", way=way, segments=segments, **common) for way in ("usual", "ours")
                )
                print(
                    f"  {model}, {segments}: {usual['seconds']:.1f} s, {ours['seconds']:.1f} s",
                    file=sys.stderr,
                )
                pair = {"title": _title(model), "segments": segments, "slices": options.slices}
                pairs.append({**pair, "usual": usual, "ours": ours})
            corrections.append({"title": _title(model), **measure("correction", segments=1, **common)})
    for segments in _SEGMENTS:
        common = {"model": DEFAULT_MODEL, "size": _SAM2_SIZE, "segments": segments}
        usual, ours = (measure("job", way=way, **common) for way in ("usual", "ours"))
        title = f"{_title(DEFAULT_MODEL)}, demonstration, to the organ's end"
        pairs.append(
            {"title": title, "segments": segments, "slices": usual["slices"], "usual": usual, "ours": ours}
        )
    return {"pairs": pairs, "corrections": corrections, "note": _speed_note(options.slices)}


def _speed_note(slices: int) -> str:
    nano = find_entry(DEFAULT_MODEL)
    weights = "" if is_available(nano) else " (the shipped weights were not there: random ones)"
    return (
        f"A synthetic volume of {slices} slices of 512 x 512, its middle slice annotated, every slice tracked in both"
        " directions (no stop rule on either side), from the volume in memory to boolean masks; loading the model is"
        " not counted. Usual way: the official `SAM2VideoPredictor` over a folder of JPEG frames written and read"
        " back, a forward and then a backward pass, one segment after the other."
        f" {_SAM2} runs at {_SAM2_SIZE} px with the same random weights on both sides. {DEFAULT_MODEL} has input"
        " channels that the official predictor cannot feed, so its usual way is timed on a stand-in: the same network"
        f" at {nano.image_size} px with a three-channel first layer, on whole frames{weights}."
        f" {DEFAULT_MODEL} computes on one thread."
        " The last two rows are the whole job as a user meets it: the demonstration's phantom, organs annotated on"
        " their middle slice; ours ends each organ by its stop rule, the usual way has none and tracks every slice."
    )


def _memory(options: argparse.Namespace, measure: Measure) -> dict[str, Any]:
    series = []
    with tempfile.TemporaryDirectory() as folder:
        base = _save_base(Path(folder))
        for model in (_SAM2, DEFAULT_MODEL):
            common = {"model": model, "size": _SAM2_SIZE, "base": base, "segments": 1}
            if model == _SAM2:
                common["feature_budget_bytes"] = _FEATURE_BUDGET_BYTES
            counts = [times * options.slices for times in _MEMORY_MULTIPLES[model]]
            for way in ("usual", "ours"):
                growth = [measure("job", way=way, slices=n, **common)["growth_bytes"] for n in counts]
                series.append({"title": _title(model), "way": way, "slices": counts, "growth_bytes": growth})
        large = measure("job", way="ours", model=DEFAULT_MODEL, base=base, segments=1, slices=_LARGE_SLICES)
    return {
        "series": series,
        "budget_bytes": _FEATURE_BUDGET_BYTES,
        "large": {**large, "slices": _LARGE_SLICES, "title": _title(DEFAULT_MODEL)},
    }


def _title(model: str) -> str:
    size = _SAM2_SIZE if model == _SAM2 else find_entry(model).image_size
    return f"{model}, {size} px"


def _save_base(folder: Path) -> str:
    phantom = phantom_ct(9001, _BASE_SHAPE_KJI, _BASE_SPACING_KJI_MM)
    path = folder / "base.npz"
    np.savez(
        path,
        voxels_kji=phantom.volume.voxels_kji,
        labels_kji=phantom.segmentation.labels_kji,
        ijk_to_ras=phantom.volume.ijk_to_ras,
    )
    return str(path)


def _in_own_process(spec: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, str(_HERE / "measure.py"), json.dumps(spec)]
    quiet = {**os.environ, "TQDM_DISABLE": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=quiet)
    if done.returncode:
        raise SystemExit(f"The measurement {spec['kind']} ended with status {done.returncode}; see above.")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _provenance(options: argparse.Namespace) -> dict[str, str]:
    words = [f"make bench{' DATA=folder' if data_root(options.data) else ''}"]
    arguments = [f"--model {options.model}"] if options.model != DEFAULT_MODEL else []
    arguments += [f"--only {options.only}"] if options.only else []
    arguments += [f"--limit {options.limit}"] if options.limit else []
    arguments += [f"--slices {options.slices}"] if options.slices != 32 else []
    if arguments:
        words.append(f"ARGS={shlex.quote(' '.join(arguments))}")
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    machine = f"{processor()}, {os.cpu_count()} cores, {options.threads} threads, {versions}"
    return {"command": " ".join(words), "machine": machine, "date": datetime.date.today().isoformat()}


if __name__ == "__main__":
    main()
