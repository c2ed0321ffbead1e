"""`medssl models`."""

from __future__ import annotations

import argparse
import sys

from ..terminal import ProgressBar
from .command import Command
from .options import add_json
from .printed import print_json

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser(
        "list", help="every model, its size and licence, and whether it is on this machine"
    )
    add_json(listing)
    download = actions.add_parser("download", help="get a model; goes on where an earlier try stopped")
    download.add_argument("model", help="model id, e.g. sam2.1-hiera-tiny")
    importing = actions.add_parser(
        "import", help="take models from a folder, for a machine without a network"
    )
    importing.add_argument("folder", help="folder that holds the original weight files")
    for action in (download, importing):
        action.add_argument(
            "--accept-license",
            action="store_true",
            help="you know the terms of a model that restricts its use",
        )


def _run(options: argparse.Namespace) -> None:
    actions = {"list": _list_models, "download": _download_model, "import": _import_models}
    actions[options.action](options)


def _list_models(options: argparse.Namespace) -> None:
    from ..registry import is_available, load_registry, model_path

    entries = load_registry()
    if options.json:
        places = [{"available": is_available(entry), "path": str(model_path(entry))} for entry in entries]
        print_json([{**vars(entry), **place} for entry, place in zip(entries, places, strict=True)])
        return
    for entry in entries:
        here = "here" if is_available(entry) else "not here"
        print(
            f"{entry.id:<24}{entry.size_bytes / 1e6:5.0f} MB  {here:<10}{entry.license}\n    {entry.purpose}"
        )


def _download_model(options: argparse.Namespace) -> None:
    from ..registry import download, find_entry

    with ProgressBar(sys.stderr, f"Downloading {options.model}") as bar:
        path = download(find_entry(options.model), bar, acknowledged=options.accept_license)
    print(f"{options.model} is ready: {path}")


def _import_models(options: argparse.Namespace) -> None:
    from ..registry import import_from_folder

    with ProgressBar(sys.stderr, "Importing") as bar:
        entries = import_from_folder(options.folder, bar, acknowledged=options.accept_license)
    print("Ready: " + ", ".join(entry.id for entry in entries))


COMMAND = Command(
    summary="list, download or import models",
    configure=_configure,
    run=_run,
    examples="medssl models list\nmedssl models download sam2.1-hiera-tiny\nmedssl models import weights_folder",
)
