"""`medssl models`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .command import Command
from .files import read_pair
from .options import add_json, add_models, add_series, add_store
from .printed import note, print_json
from .terminal import ProgressBar, table

if TYPE_CHECKING:
    from ..few_labels.model_store import ModelStore, ModelVersion

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser(
        "list",
        help="your own models and their versions; promptable models, and whether they are on this machine",
    )
    add_json(listing)
    use = actions.add_parser("use", help="go back, or forward, to a version of a model of your own")
    use.add_argument("model", metavar="NAME:VERSION", help="e.g. liver:2")
    delete = actions.add_parser("delete", help="take out a version, or a whole model; the files are kept")
    delete.add_argument(
        "model", metavar="NAME[:VERSION]", help="e.g. liver:2, or liver; or a promptable model of your own"
    )
    export = actions.add_parser("export", help="write a version as one file, for another machine")
    export.add_argument("model", metavar="NAME[:VERSION]")
    export.add_argument("file", help="to write, ends in .safetensors")
    download = actions.add_parser(
        "download", help="get a promptable model; goes on where an earlier try stopped"
    )
    download.add_argument("model", help="model id, e.g. sam2.1-hiera-tiny")
    importing = actions.add_parser(
        "import",
        help="take a model of your own from a file or run, or promptable ones from a folder of weights",
    )
    importing.add_argument(
        "source", help="model file, folder of a training run, or folder with the original weight files"
    )
    importing.add_argument("--name", default="", help="what to call a model of your own [the file's name]")
    importing.add_argument(
        "--like", default="", metavar="ID", help="the file is a fine-tuned version of this promptable model"
    )
    compare = actions.add_parser("compare", help="measure versions on the same case: one line each")
    compare.add_argument("model", nargs="+", metavar="NAME[:VERSION]", help="models, versions or files")
    compare.add_argument("--case", metavar="ID", help="case of the store, on the slices that are vouched for")
    compare.add_argument("--volume", metavar="FILE", help="in place of a case: an image")
    compare.add_argument("--truth", metavar="FILE", help="and its label map")
    compare.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps [%(default)s]")
    add_series(compare)
    add_store(compare)
    add_json(compare)
    for action in (listing, use, delete, export, importing, compare):
        add_models(action)
    for action in (download, importing):
        action.add_argument(
            "--accept-license",
            action="store_true",
            help="you know the terms of a model that restricts its use",
        )


def _run(options: argparse.Namespace) -> None:
    if options.action == "download":
        _download_model(options)
        return
    from ..few_labels.model_store import ModelStore

    actions = {
        "list": _list_models, "use": _use, "delete": _delete, "export": _export, "import": _import, "compare": _compare,
    }  # fmt: skip
    actions[options.action](ModelStore(options.models), options)


def _list_models(store: ModelStore, options: argparse.Namespace) -> None:
    from ..registry import known_models, model_path
    from ..serving.facts import entry_facts, model_facts

    own = store.models(note)
    promptable = [{**entry_facts(entry), "path": str(model_path(entry))} for entry in known_models()]
    if options.json:
        print_json({"own": [model_facts(model) for model in own], "promptable": promptable})
        return
    print("Models of your own" + ("" if own else ": none yet; train one with medssl finetune"))
    rows = [_version_row(version, version == model.in_use) for model in own for version in model.versions]
    if rows:
        print(table(["model", "in use", "finds", "Dice", "from", "cases"], rows, left=(0, 1, 2, 4)))
    print("\nPromptable models")
    for entry in promptable:
        here = "here" if entry["available"] else "not here"
        print(
            f"{entry['id']:<24}{entry['size_bytes'] / 1e6:5.0f} MB  {here:<10}{entry['license']}\n"
            f"    {entry['purpose']}"
        )


def _version_row(version: ModelVersion, in_use: bool) -> list[str]:
    info = version.info
    dice = sum(info.dice.values()) / len(info.dice) if info.dice else None
    return [
        version.id,
        "*" if in_use else "",
        ", ".join(info.names),
        "-" if dice is None else f"{dice:.3f}",
        str(info.base.get("model") or info.encoder.get("method", "random weights")),
        str(len(info.cases)),
    ]


def _use(store: ModelStore, options: argparse.Namespace) -> None:
    version = store.use(options.model)
    print(f"{version.name} now stands for {version.id}.")


def _delete(store: ModelStore, options: argparse.Namespace) -> None:
    from ..model_files import remove_own
    from ..registry import known_models

    promptable = {entry.id: entry for entry in known_models()}.get(options.model)
    if promptable is None or store.in_use(options.model):
        store.delete(options.model)
        removed = store.folder / "removed"
    else:
        removed = remove_own(promptable)
    print(f"Deleted {options.model}; the files are kept in {removed}.")


def _export(store: ModelStore, options: argparse.Namespace) -> None:
    store.export(options.model, options.file)
    print(f"Written: {options.file}")


def _compare(store: ModelStore, options: argparse.Namespace) -> None:
    """Dice of each version per segment; beyond the vouched slices nothing counts."""
    from ..cases import CaseStore, vouch_for_all
    from ..comparing import compare_models
    from ..few_labels.model_store import model_file

    if (options.case is None) == (options.volume is None) or (options.volume is None) != (
        options.truth is None
    ):
        raise InputError("Give either --case, or --volume with --truth.")
    if options.case:
        case = CaseStore(options.store).case(options.case)
        volume, truth, vouched = case.volume(), case.segmentation(), case.vouched
    else:
        volume, truth = read_pair(options.volume, options.truth, options.series)
        vouched = tuple(vouch_for_all(truth))
    files = {model: model_file(model, str(store.folder)) for model in options.model}
    with ProgressBar(sys.stderr, "Comparing") as bar:
        scores = compare_models(files, volume, truth, vouched, device=options.device, on_progress=bar)
    if options.json:
        print_json(scores)
        return
    names = list(dict.fromkeys(name for found in scores.values() for name in found))
    rows = [[model, *(_dice(found.get(name)) for name in names)] for model, found in scores.items()]
    print(table(["model", *names], rows))


def _dice(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"


def _download_model(options: argparse.Namespace) -> None:
    from ..model_files import download
    from ..registry import find_entry

    with ProgressBar(sys.stderr, f"Downloading {options.model}") as bar:
        path = download(find_entry(options.model), bar, acknowledged=options.accept_license)
    print(f"{options.model} is ready: {path}")


def _import(store: ModelStore, options: argparse.Namespace) -> None:
    source = Path(options.source)
    run = source / "checkpoint.safetensors"
    if source.is_file() or run.is_file():
        _import_own(store, run if run.is_file() else source, options.name or _name_of(source), options.like)
        return
    from ..model_files import import_from_folder

    if options.name or options.like:
        raise InputError(f"--name and --like are for one file; {source} is none.")
    with ProgressBar(sys.stderr, "Importing") as bar:
        entries = import_from_folder(source, bar, acknowledged=options.accept_license)
    print("Ready: " + ", ".join(entry.id for entry in entries))


def _name_of(source: Path) -> str:
    return source.absolute().name if source.is_dir() else source.stem


def _import_own(store: ModelStore, file: Path, name: str, like: str) -> None:
    """One that finds segments by itself goes to the store, a promptable one to the user's model folder."""
    from ..few_labels.model_store import require_model_name
    from ..foundation.own import add_own, is_small_model

    require_model_name(name)
    if like or file.suffix != ".safetensors" or is_small_model(file):
        if store.in_use(name):
            raise InputError(f"There is a model {name} that finds segments by itself; give another --name.")
        entry = add_own(file, name, like)
        print(f"Ready: {entry.id}. {entry.purpose}\nUse it with: --model {entry.id}")
        return
    from ..few_labels.segmenter import read_model

    read_model(file)  # a file from elsewhere: weights that do not fit are better found now
    version = store.add(file, name)
    print(f"Ready: {version.id}, which finds {', '.join(version.info.names)}")


COMMAND = Command(
    summary="your own models and their versions, and promptable models: list, use, compare, get more",
    configure=_configure,
    run=_run,
    examples="medssl models list\nmedssl models use liver:2\n"
    "medssl models compare liver:1 liver:2 --case patient_7-1a2b3c4d\n"
    "medssl models export liver liver.safetensors\nmedssl models import liver.safetensors --name liver\n"
    "medssl models import runs/clicks --name our-nano\n"
    "medssl models import fine_tuned.pt --like sam2.1-hiera-tiny --name our-sam2\n"
    "medssl models download sam2.1-hiera-tiny\nmedssl models import weights_folder",
)
