"""The command line: ``python -m irf_lib run ...`` and ``python -m irf_lib data list|check``.

Exit status: 0 done, 1 a notebook failed, a stage is missing its input or a file cannot be written, 2 the command or the
data are wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from . import datasets, embedded
from .datasets import DataError
from .features import BackboneError
from .runs import PRESETS, ParameterError, RunError, project_root, run_notebooks
from .storage import StorageError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m irf_lib", description="OSD-IRF, reproduced.")
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="run the notebooks in order, through papermill")
    presets = "; ".join(f"{name}: {preset.purpose}" for name, preset in PRESETS.items())
    run.add_argument("--preset", default="quick", choices=list(PRESETS), help=presets)
    run.add_argument("--data", default="", metavar="DIR", help="a folder of images (default: the embedded data)")
    run.add_argument("--category", action="append", default=[], metavar="C", help="one category (repeat for more)")
    run.add_argument("--seed", action="append", default=[], type=int, metavar="N", help="one seed (repeat for more)")
    run.add_argument("--unified", action=argparse.BooleanOptionalAction, help="one model for all the categories")
    run.add_argument("--out", default="", metavar="DIR", help="results folder (default: results/PRESET)")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    run.add_argument("--set", action="append", default=[], metavar="K=V", help="change a detector setting, as t=300")
    run.add_argument("-p", action="append", default=[], metavar="K=V", help="a parameter of a single notebook")
    run.add_argument("--only", action="append", default=[], metavar="NN", help="only this notebook (repeat for more)")
    run.add_argument(
        "--jobs", default=0, type=int, metavar="N", help="notebooks side by side (default: as many as fit)"
    )
    run.add_argument("--force", action="store_true", help="run stages whose outputs are current, too")

    data = commands.add_parser("data", help="look at a data set")
    data.add_argument("action", choices=["list", "check"], help="list: what is there; check: decode every file")
    data.add_argument("--data", default="", metavar="DIR", help="a folder of images (default: the embedded data)")
    data.add_argument("--category", action="append", default=[], metavar="C", help="one category (repeat for more)")
    return parser


def _assignments(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """K=V pairs with V read as YAML, as papermill reads its own -y: 300 is an int, [1, 2] a list, x a string."""
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ParameterError(f"{option} takes NAME=VALUE, got {pair!r}")
        try:
            values[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ParameterError(f"{option} {pair!r} cannot be read: {error}") from None
    return values


def _run(arguments: argparse.Namespace) -> int:
    root = project_root()

    def from_root(folder: str) -> str:
        # Relative to the project and not where a link leads: notebooks and provenance name no folder of this machine.
        return os.path.relpath(os.path.abspath(Path(folder).expanduser()), root.resolve()) if folder else ""

    parameters = {
        "preset": arguments.preset,
        "data": from_root(arguments.data),
        "categories": arguments.category,
        "seeds": arguments.seed,
        "unified": {None: "auto", True: "yes", False: "no"}[arguments.unified],
        "settings": _assignments(arguments.set, "--set"),
        "out": from_root(arguments.out),
        "device": arguments.device,
    }
    folder = run_notebooks(parameters, _assignments(arguments.p, "-p"), arguments.only, arguments.force, arguments.jobs)
    print(f"done: {os.path.relpath(folder)}")
    return 0


def _data(arguments: argparse.Namespace) -> int:
    if arguments.data:
        root = Path(arguments.data).expanduser()
    else:
        root = embedded.write_embedded(project_root() / "data" / "textures")
    print(f"{'category':<20} {'layout':<7} {'train':>6} {'good':>6} {'defect':>7}  masks")
    for name in arguments.category or datasets.list_categories(root):
        category = datasets.read_category(root, name)
        if arguments.action == "check":
            datasets.check_category(category)
        anomalous = sum(image.is_anomalous for image in category.test)
        masks = "yes" if category.has_masks else "no"
        counts = f"{len(category.train):>6} {len(category.test) - anomalous:>6} {anomalous:>7}  {masks}"
        print(f"{category.name:<20} {category.layout:<7} {counts}")
    if arguments.action == "check":
        print("every file can be read, and every mask fits its image")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        return {"run": _run, "data": _data}[arguments.command](arguments)
    except (DataError, ParameterError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RunError, BackboneError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
