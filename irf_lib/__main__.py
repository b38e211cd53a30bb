"""The command line: ``python -m irf_lib run|fit|score|data ...``.

Exit status: 0 done; 1 a notebook or a download failed, a stage is missing its input, or a file cannot be written; 2 the
command or the data are wrong. Of ``score``: 0 nothing was flagged, 1 something was, 2 anything else.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from . import datasets, downloads, embedded, inspection
from .datasets import DataError
from .detector import DetectorSettings, OneStepDetector
from .diffusion import resolve_device
from .downloads import DownloadError
from .features import BackboneError
from .runner import run_notebooks
from .stages import PRESETS, ParameterError, RunError, explain, project_root
from .storage import StorageError

# What a user can put right: said in a sentence, without a traceback.
EXPECTED = (DataError, RunError, BackboneError, DownloadError, StorageError)


def exit_status(error: Exception) -> int:
    """2 where the command or the data are wrong, 1 where something failed on the way."""
    return 2 if isinstance(error, DataError | ParameterError) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m irf_lib", description="OSD-IRF, reproduced.")
    commands = parser.add_subparsers(dest="command", required=True)

    _add_runner_options(commands.add_parser("run", help="run the notebooks in order, through papermill"))
    _add_fit_options(commands.add_parser("fit", help="fit a model on a folder of good images"))
    status = "Exit status: 0 nothing flagged, 1 something flagged, 2 an image could not be read, or anything else."
    score = commands.add_parser(
        "score",
        help="score images by a fitted model",
        description=f"Writes scores.csv, report.html and overlays. {status}",
    )
    _add_score_options(score)
    _add_data_parsers(commands.add_parser("data", help="look at a data set, or get one"))
    return parser


def _add_runner_options(run: argparse.ArgumentParser) -> None:
    add_run_options(run)
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    run.add_argument("-p", action="append", default=[], metavar="K=V", help="a parameter of a single notebook")
    run.add_argument("--only", action="append", default=[], metavar="NN", help="only this notebook (repeat for more)")
    run.add_argument(
        "--jobs", default=0, type=int, metavar="N", help="notebooks side by side (default: as many as fit)"
    )
    run.add_argument("--force", action="store_true", help="run stages whose outputs are current, too")
    run.add_argument(
        "--part",
        action="store_true",
        help="this is one of several runs that fill a results folder together: keep its executed notebooks apart from "
        "theirs, under notebooks/parts",
    )


def _add_fit_options(fit: argparse.ArgumentParser) -> None:
    fit.add_argument("good", type=Path, metavar="GOOD_FOLDER", help="images of good parts, about 20 or more")
    fit.add_argument("--out", type=_folder, required=True, metavar="MODEL", help="the model's folder")
    fit.add_argument("--alpha", type=float, help="share of good parts that may be flagged (default: 0.05)")
    fit.add_argument("--preset", default="reference", choices=list(PRESETS), help="how large (default: reference)")
    fit.add_argument("--set", action="append", default=[], metavar="K=V", help="change a detector setting, as t=300")
    fit.add_argument("--seed", type=_natural, default=0, metavar="N", help="of split, weights and noise (default: 0)")
    fit.add_argument("--device", default="auto", type=_device, help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    fit.add_argument("--force", action="store_true", help="replace another model in that folder")


def _add_score_options(score: argparse.ArgumentParser) -> None:
    score.add_argument("model", type=Path, metavar="MODEL", help="a folder that fit has made")
    score.add_argument("images", type=Path, nargs="+", metavar="IMAGES", help="image files, and folders of them")
    score.add_argument("--out", type=_folder, required=True, metavar="DIR", help="where the results go")
    score.add_argument("--alpha", type=float, help="share of good parts that may be flagged (default: the model's)")
    score.add_argument("--worst", type=_natural, default=20, metavar="N", help="images on the page (default: 20)")
    score.add_argument("--overlays", default="all", choices=["all", "flagged", "none"], help="which to write")
    score.add_argument("--device", default="auto", type=_device, help="auto, cpu, cuda, cuda:1, mps (default: auto)")


def _add_data_parsers(data: argparse.ArgumentParser) -> None:
    actions = data.add_subparsers(dest="action", required=True)
    for action, purpose in (("list", "what is there"), ("check", "decode every file")):
        look = actions.add_parser(action, help=purpose)
        _add_data_options(look)

    get = actions.add_parser("download", help="get a public data set: its licence is shown, its archive checked")
    get.add_argument("name", choices=list(downloads.SOURCES))
    get.add_argument("--to", default="", metavar="DIR", help="the data set's new folder (default: data/NAME)")
    get.add_argument("--archive", default="", metavar="FILE", help="check and unpack this file instead of fetching it")
    get.add_argument("--yes", action="store_true", help="go on without asking")


def _natural(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 2**63 - 1")
    return int(text)


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty name would be the working directory; write . if it is meant")
    return Path(text)


def _device(name: str) -> str:
    try:
        resolve_device(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", default="", metavar="DIR", help="a folder of images (default: the embedded data)")
    parser.add_argument("--category", action="append", default=[], metavar="C", help="one category (repeat for more)")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what a run is; :func:`run_parameters` reads them."""
    presets = "; ".join(f"{name}: {preset.purpose}" for name, preset in PRESETS.items())
    parser.add_argument("--preset", default="quick", choices=list(PRESETS), help=presets)
    _add_data_options(parser)
    parser.add_argument("--seed", action="append", default=[], type=int, metavar="N", help="one seed (repeat for more)")
    parser.add_argument("--unified", action=argparse.BooleanOptionalAction, help="one model for all the categories")
    parser.add_argument("--out", default="", metavar="DIR", help="results folder (default: results/PRESET)")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="change a detector setting, as t=300")


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


def run_parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    """The RunParameters, but the device, that the options of :func:`add_run_options` ask for. Raises ParameterError."""
    root = project_root()

    def from_root(folder: str) -> str:
        # Relative to the project and not where a link leads: notebooks and provenance name no folder of this machine.
        return os.path.relpath(os.path.abspath(Path(folder).expanduser()), root.resolve()) if folder else ""

    return {
        "preset": arguments.preset,
        "data": from_root(arguments.data),
        "categories": arguments.category,
        "seeds": arguments.seed,
        "unified": {None: "auto", True: "yes", False: "no"}[arguments.unified],
        "settings": _assignments(arguments.set, "--set"),
        "out": from_root(arguments.out),
    }


def _run(arguments: argparse.Namespace) -> int:
    parameters = run_parameters(arguments) | {"device": arguments.device}
    own = _assignments(arguments.p, "-p")
    folder = run_notebooks(parameters, own, arguments.only, arguments.force, arguments.jobs, arguments.part)
    print(f"done: {os.path.relpath(folder)}")
    return 0


def _nats(threshold: float) -> str:
    return f"{threshold:.1f} nats" if math.isfinite(threshold) else "none"


def _fit(arguments: argparse.Namespace) -> int:
    changes = _assignments(arguments.set, "--set") | ({} if arguments.alpha is None else {"alpha": arguments.alpha})
    try:
        settings = DetectorSettings(**(dict(PRESETS[arguments.preset].settings) | changes))
    except ValidationError as error:
        raise ParameterError(f"wrong settings: {explain(error)}") from None
    good, folder = arguments.good.expanduser(), arguments.out.expanduser()
    if folder.resolve().is_relative_to(good.resolve()):
        raise ParameterError(f"--out {folder} lies inside {good}, where it would be taken for images; choose another.")
    images = inspection.good_images(good)
    print(f"{len(images)} good images in {arguments.good}", flush=True)
    start = time.monotonic()
    detector = inspection.fit_model(images, folder, settings, arguments.seed, arguments.device, force=arguments.force)
    held_out = len(detector.calibration_index)
    print(f"fitted on {len(images) - held_out}, threshold {_nats(detector.threshold)} from {held_out} held out, at a "
          f"false-alarm rate of {settings.alpha:g}")  # fmt: skip
    print(f"done in {time.monotonic() - start:.0f} s: {arguments.out}")
    print(f"next: python -m irf_lib score {shlex.quote(str(arguments.out))} IMAGES --out DIR")
    return 0


def _score(arguments: argparse.Namespace) -> int:
    folder, model = arguments.out.expanduser(), arguments.model.expanduser()
    images = inspection.find_images([place.expanduser() for place in arguments.images], leave_out=folder / "overlays")
    if not (model / "detector.json").is_file():
        raise DataError(f"{model}: not a model, it has no detector.json; name a folder that `fit` has made.")
    detector = OneStepDetector.load(model, arguments.device)
    try:
        # Also where it is the model's own: a threshold that cannot flag anything is worth a warning every time.
        detector = detector.with_alpha(arguments.alpha if arguments.alpha is not None else detector.settings.alpha)
    except ValidationError as error:
        raise ParameterError(f"wrong settings: {explain(error)}") from None
    result = inspection.inspect(
        detector, images, folder, arguments.worst, arguments.overlays, model=str(arguments.model)
    )
    for row in result.table[result.table.verdict == inspection.UNREADABLE].itertuples():
        print(f"error: {row.message}", file=sys.stderr)
    flagged, unreadable = result.count(inspection.FLAGGED), result.count(inspection.UNREADABLE)
    print(f"{len(images)} images: {flagged} flagged, {result.count(inspection.PASSED)} passed, {unreadable} unreadable "
          f"(false-alarm rate {detector.settings.alpha:g}, threshold {_nats(detector.threshold)})")  # fmt: skip
    for one in result.worst[:5]:
        print(f"{one.score:10.1f}  p {one.p_value:.3f}  {one.verdict:<8} {result.name(one.path)}")
    print(f"done: {folder / 'report.html'}")
    return 2 if unreadable else 1 if flagged else 0


def _data(arguments: argparse.Namespace) -> int:
    return _download(arguments) if arguments.action == "download" else _look(arguments)


def _look(arguments: argparse.Namespace) -> int:
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


def _download(arguments: argparse.Namespace) -> int:
    source = downloads.SOURCES[arguments.name]
    target = Path(arguments.to).expanduser() if arguments.to else project_root() / "data" / source.name
    archive = Path(arguments.archive).expanduser() if arguments.archive else None
    if downloads.is_finished(source, target):
        print(f"{os.path.relpath(target)} is there already, nothing to do")
    else:
        print(downloads.notice(source), f"to:       {os.path.relpath(target)}", sep="\n")
        downloads.check_request(source, archive)
        if not (arguments.yes or _confirmed()):
            print("nothing was done")
            return 1
        downloads.download(source, target, archive)
    shown = shlex.quote(os.path.relpath(target))
    print(f"go on with:\n  python -m irf_lib data check --data {shown}")
    print(f"  python -m irf_lib run --preset reference --data {shown} --out results/{source.name}")
    return 0


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        raise DataError("nobody is here to answer; if you accept the licence above, say so with --yes.")
    try:
        return input("go on? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            return {"run": _run, "fit": _fit, "score": _score, "data": _data}[arguments.command](arguments)
    except EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        # A script must not take a failure of `score` for a flagged part.
        return 2 if arguments.command == "score" else exit_status(error)
    except Exception:
        if arguments.command != "score":
            raise
        traceback.print_exc()  # Python's own exit status would be 1
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
