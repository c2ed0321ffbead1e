"""Plain facts for display: cases, runs, models, encoders and methods as dicts that JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..registry import ModelEntry, is_available

if TYPE_CHECKING:
    from ..cases import Case
    from ..few_labels.model_store import ModelVersion, StoredModel
    from ..methods import Method
    from ..runs.run_folder import RunFolder

__all__ = [
    "case_facts",
    "encoder_facts",
    "entry_facts",
    "method_facts",
    "model_facts",
    "run_facts",
    "version_facts",
]


def case_facts(case: Case) -> dict[str, Any]:
    """A case, without its arrays."""
    segments = [
        {**asdict(segment), "slices": case.vouched_slices(segment.name), "code": case.codes.get(segment.name)}
        for segment in case.segments
    ]
    return {
        "id": case.id,
        "name": case.name,
        "summary": case.summary(),
        "folder": str(case.folder),
        "volume_path": str(case.volume_path),
        "volume_hash": case.volume_hash,
        "shape_kji": list(case.shape_kji),
        "spacing_kji_mm": list(case.spacing_kji_mm),
        "modality": case.modality,
        "patient": case.patient,
        "segments": segments,
        "vouched": [{**asdict(v), "indices": list(v.indices)} for v in case.vouched],
        "revision": case.revision,
        "fingerprint": case.fingerprint,
        "history": [asdict(entry) for entry in case.history],
    }


def run_facts(run: RunFolder) -> dict[str, Any]:
    """A run and how it stands."""
    status, metrics = run.status, run.metrics()
    return {
        "path": str(run.path),
        "name": run.path.name,
        "kind": run.kind,
        "method": run.config.get("method"),
        "config": dict(run.config),
        "created": run.created,
        "state": status.state,
        "message": status.message,
        "pid": status.pid,
        "host": status.host,
        "progress": status.progress and asdict(status.progress),
        "metric": asdict(metrics[-1]) if metrics else None,
        "has_result": run.checkpoint.is_file(),
    }


def model_facts(model: StoredModel) -> dict[str, Any]:
    """A trained model and all its versions, oldest first."""
    return {
        "name": model.name,
        "in_use": model.in_use.number,
        "versions": [version_facts(version) for version in model.versions],
    }


def version_facts(version: ModelVersion) -> dict[str, Any]:
    """The card of one version: what it finds, how well, and where it comes from."""
    info = version.info
    return {
        "id": version.id,
        "number": version.number,
        "path": str(version.path),
        "created": version.created,
        "size_bytes": version.path.stat().st_size,
        "segments": [asdict(segment) for segment in info.segments],
        "dice": dict(info.dice),
        "backbone": info.backbone,
        "modality": info.contract.modality,
        "spatial_dims": info.contract.spatial_dims,
        "spacing_kji_mm": list(info.contract.spacing_kji_mm),
        "encoder": dict(info.encoder),
        "base": info.base.get("model", ""),
        "follows": info.follows,
        "cases": list(info.cases),
        "settings": dict(info.settings),
        "program": info.version,
    }


def encoder_facts(path: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    """An encoder file, from its header as `checkpoints.read_header` gives it."""
    contract = header["contract"]
    return {
        "path": str(path),
        "name": path.parent.name if path.name == "checkpoint.safetensors" else path.stem,
        "method": header["method"],
        "backbone": header["backbone"],
        "modality": contract["modality"],
        "spatial_dims": contract["spatial_dims"],
        "scans": len(header["data"]),
        "step": header["step"],
        "supervision": header.get("supervision", ""),
        "citation": header.get("citation", ""),
        "size_bytes": path.stat().st_size,
    }


def method_facts(name: str, method: type[Method]) -> dict[str, Any]:
    """A self-supervised method, and the networks its presets are for."""
    presets = {
        preset: {"backbone": settings.backbone, "spatial_dims": settings.contract.spatial_dims}
        for preset, settings in method.presets().items()
    }
    return {"name": name, **asdict(method.info), "presets": presets}


def entry_facts(entry: ModelEntry) -> dict[str, Any]:
    """A promptable model of the registry, and whether its weights are on this machine."""
    return {**asdict(entry), "available": is_available(entry)}
