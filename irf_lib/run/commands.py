"""The commands of ``python -m irf_lib``."""

import ast
import contextlib
import os
import shlex
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from ..files import InputError, RunError, printable
from .presets import PRESETS, Parameters, project_root, validated

Preset = Literal[tuple(PRESETS)]
Place = Annotated[Path, typer.Option("--out", metavar="PLACE", help="Where it goes; a model's folder or .safetensors.")]
Changes = Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="Change Settings or Reading: t=300.")]
Values = Annotated[list[str] | None, typer.Option("-p", metavar="K=V", help="One of its parameters.")]
Alpha = Annotated[float | None, typer.Option(min=1e-4, max=0.9999, help="Share of good parts that may be flagged.")]
Natural = Annotated[int, typer.Option(min=0, max=2**63 - 1)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.",
                                     callback=lambda name: validated(Parameters, {"device": name}).device)]  # fmt: skip
Data = Annotated[str, typer.Option(metavar="DIR", help="A folder of images; default: the embedded data.")]
Categories = Annotated[list[str] | None, typer.Option("--category", help="One category (repeat for more).")]


class Commands(TyperGroup):
    """What a person can put right is said in a sentence, and the number that a command returns is the exit status."""

    def invoke(self, ctx: Any) -> None:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
                status = super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            stopped = isinstance(error, KeyboardInterrupt)
            score = ctx.invoked_subcommand == "score"  # a script must not take its failure for a flagged part
            if stopped or isinstance(error, InputError | RunError | OSError):
                print("interrupted" if stopped else f"error: {error}", file=sys.stderr)
            elif hasattr(error, "exit_code") or not score:  # typer's own, or a fault of ours
                raise
            else:
                traceback.print_exc()
            status = 130 if stopped else 2 if score or isinstance(error, InputError) else 1
        raise typer.Exit(status or 0)


PLAIN = {"no_args_is_help": True, "add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}
app = typer.Typer(cls=Commands, help="OSD-IRF, reproduced.", **PLAIN)
data_app = typer.Typer(help="Check a data set, or get one.", **PLAIN)
app.add_typer(data_app, name="data")


def _assignments(pairs: Sequence[str] | None, option: str, texts: Sequence[str] = ()) -> dict[str, Any]:
    """K=V pairs, V a literal (300, 5e-5, [1, 2], true) or else a text; always a text for the names in ``texts``."""
    values = {}
    for name, equals, text in (pair.partition("=") for pair in pairs or ()):
        if not equals or not name.isidentifier():
            raise InputError(f"{option} takes NAME=VALUE, got {name + equals + text!r}.")
        values[name] = text
        with contextlib.suppress(ValueError, SyntaxError):
            literal = {"true": "True", "false": "False"}.get(text, text)
            values[name] = text if name in texts else ast.literal_eval(literal)
    return values


def _changes(pairs: Sequence[str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What --set changes in Settings, and in Reading, which is told by the names."""
    from ..settings import Reading

    settings = _assignments(pairs, "--set")
    reading = {name: settings.pop(name) for name in Reading.model_fields if name in settings}
    return settings, reading


def _model_file(model: Path) -> Path:
    return (model if model.suffix == ".safetensors" else model / "detector.safetensors").expanduser()


def _nats(threshold: float) -> str:
    return f"{threshold:.1f} nats" if threshold < float("inf") else "none"


@app.command()
def fit(good: Path, out: Place, preset: Preset = "reference", set_: Changes = None, alpha: Alpha = 0.05,
        seed: Natural = 0, device: Device = "auto", force: bool = False) -> None:  # fmt: skip
    """Fit a model on GOOD, a folder of about 20 images of good parts or more; another reading trains nothing again."""
    from ..settings import Reading, Settings
    from . import parts

    changed, read = _changes(set_)
    settings = validated(Settings, {**PRESETS[preset].settings, **changed})
    reading = validated(Reading, {**PRESETS[preset].reading, **read})
    good, path, start = good.expanduser(), _model_file(out), time.monotonic()
    if path.parent.resolve().is_relative_to(good.resolve()):
        raise InputError(f"--out {printable(out)} lies inside {printable(good)}, among the images; choose another.")
    images = parts.good_images(good)
    print(f"{len(images)} good images in {printable(good)}", flush=True)
    try:
        detector = parts.fit_model(images, path, settings, reading, seed, device, force=force, alpha=alpha)
    finally:
        if parts.checkpoint_of(path).is_file():  # of a fit that was interrupted
            print(f"a checkpoint was kept, the same command resumes: {parts.checkpoint_of(path)}", file=sys.stderr)
    held_out = len(detector.calibration_index)
    print(f"fitted on {len(images) - held_out}, threshold {_nats(detector.threshold(alpha))} from {held_out} held out, "
          f"at a false-alarm rate of {alpha:g}; read at t = {detector.reading.t}")  # fmt: skip
    print(f"done in {time.monotonic() - start:.0f} s: {printable(out)}")
    print(f"next: python -m irf_lib score {shlex.quote(printable(out))} IMAGES --out DIR")


@app.command()
def score(model: Path, images: list[Path], out: Place, alpha: Alpha = None, worst: Natural = 20,
          overlays: Literal["all", "flagged", "none"] = "all", device: Device = "auto") -> int:  # fmt: skip
    """Score IMAGES, files or folders, by the MODEL of a fit: scores.csv, report.html with the WORST images, overlays.

    Exit status: 0 nothing flagged, 1 something flagged, 2 an image could not be read, or anything else."""
    from ..detector import Detector
    from . import parts

    folder = out.expanduser()
    found = parts.find_images([place.expanduser() for place in images], leave_out=folder / "overlays")
    detector = Detector.load(_model_file(model), device)
    alpha = alpha or detector.extra.get("alpha") or 0.05
    result = parts.inspect(detector, found, folder, worst, overlays, alpha, model=str(model))
    for message in result.table.message[result.table.verdict == parts.UNREADABLE]:
        print(f"error: {message}", file=sys.stderr)
    flagged, passed, unreadable = (result.count(one) for one in (parts.FLAGGED, parts.PASSED, parts.UNREADABLE))
    print(f"{len(found)} images: {flagged} flagged, {passed} passed, {unreadable} unreadable (false-alarm rate "
          f"{alpha:g}, threshold {_nats(result.table.threshold[0])})")  # fmt: skip
    for one in result.table.nlargest(5, "score").itertuples():
        print(f"{one.score:10.1f}  p {one.p_value:.3f}  {one.verdict:<8} {one.image}")
    print(f"done: {printable(folder / 'report.html')}")
    return 2 if unreadable else 1 if flagged else 0


@app.command()
def export(model: Path, out: Place, device: Device = "cpu") -> None:
    """Write the MODEL of a fit as one ONNX file: image (N, 3, H, H) in [0, 1] in; score, map and p_value out."""
    from ..detector import Detector
    from ..export import export_onnx

    path = out.expanduser() if out.suffix == ".onnx" else out.expanduser() / "model.onnx"
    detector = Detector.load(_model_file(model), device)
    export_onnx(detector, path)
    print(f"done: {printable(path)}; a part is defective where p_value <= the false-alarm rate that you accept")


def _end_with(parent: int) -> None:
    """Let this process end when its parent has: a notebook must not go on beside the one that resumes its run."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@app.command()
def notebook(nn: str, p: Values = None, out: Path | None = None) -> None:
    """Execute one notebook, by its number: notebook 05 -p seed=1. OUT is notebooks/ beside its results."""
    from . import notebooks

    if "IRF_PARENT" in os.environ:
        _end_with(int(os.environ["IRF_PARENT"]))
    root, start = project_root(), time.monotonic()
    path = notebooks.find_notebook(root, nn)
    known = notebooks.notebook_parameters(path)
    given = _assignments(p, "-p", [name for name, (kind, _) in known.items() if kind == "str"])
    notebooks.check_parameters(path, given)
    if out is None:
        from .results import Run

        shared = {name: given.get(name, known[name][1]) for name in Parameters.model_fields if name in known}
        out = Run.open(path.stem, **shared).folder / "notebooks" / path.name
    notebooks.execute(path, out, given, root)
    print(f"{path.stem}: done in {time.monotonic() - start:.0f} s, {printable(os.path.relpath(out))}")


@app.command()
def train(preset: Preset = "quick", data: Data = "", category: str = "", seed: Natural = 0, out: str = "",
          set_: Changes = None, cpu: bool = False) -> None:  # fmt: skip
    """Train what 03_train trains, on several processes or GPUs: accelerate launch ... -m irf_lib train ..."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    from .results import Run

    settings, reading = _changes(set_)
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))  # the main process computes features meanwhile
    # Where there is no GPU, accelerate must be told so, or each process that it started believes to be alone.
    accelerator = Accelerator(cpu=cpu or not torch.cuda.is_available(), kwargs_handlers=[patience])
    if accelerator.num_processes > 1:  # a killed launcher leaves its processes, and the next would train beside them
        _end_with(os.getppid())
    with accelerator.main_process_first():
        run = Run.open("03_train", preset=preset, data=data, category=category, seed=seed, settings=settings,
                       reading=reading, out=out, device=str(accelerator.device))  # fmt: skip
    detector = run.detector(accelerator.is_main_process, accelerator)
    accelerator.wait_for_everyone()  # the main process may still be writing
    if accelerator.is_main_process:
        last, n = detector.history[-1], accelerator.num_processes
        print(f"{run.label}: loss {last.loss:.3f} at step {last.step}, {n} processes; {run.show(run.home)}")
    accelerator.end_training()


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def run(words: Annotated[list[str] | None, typer.Argument()] = None, cores: str = "all") -> None:
    """Make a run (quick, reference, paper or a YAML file): its notebooks for every data set, category and seed.

    A killed run resumes. Further words go to Snakemake: -n shows what would run, --profile DIR uses a cluster."""
    import fcntl

    root, words = project_root(), list(words or ())
    name = words.pop(0) if words and not words[0].startswith("-") else "quick"
    config = Path(name) if name.endswith((".yaml", ".yml")) else root / "workflow" / f"{name}.yaml"
    if not config.is_file():
        raise InputError(f"there is no {printable(config)}; name quick, reference, paper, or a YAML file of yours.")
    # Snakemake's own lock outlives a killed run. This one does not: the system drops it with the process.
    (root / ".snakemake").mkdir(exist_ok=True)
    lock = os.open(root / ".snakemake" / f"{config.stem}.lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"another command makes the run {config.stem} at this moment; wait for it to end.") from None
    os.set_inheritable(lock, True)
    command = ["-m", "snakemake", "--snakefile", root / "workflow" / "Snakefile", "--directory", root, "--configfile"]
    command += [config.resolve(), "--cores", cores, "--nolock", "--rerun-incomplete", *words]
    os.execv(sys.executable, [sys.executable, *map(str, command)])


@data_app.command()
def check(data: Data = "", category: Categories = None) -> int:
    """Say what is there; decode every file; name leaks (a test image that is trained on) and duplicates."""
    from ..data.embedded import write_embedded
    from ..data.layouts import check_category, list_categories, read_category

    root = Path(data).expanduser() if data else write_embedded(project_root() / "data" / "textures")
    said = []
    print(f"{'category':<20} {'layout':<7} {'train':>6} {'good':>6} {'defect':>7}  masks")
    for one in (read_category(root, name) for name in category or list_categories(root)):
        said += check_category(one)
        defect = sum(image.is_anomalous for image in one.test)
        counts = f"{len(one.train):>6} {len(one.test) - defect:>6} {defect:>7}  {'yes' if one.has_masks else 'no'}"
        print(f"{printable(one.name):<20} {one.layout:<7} {counts}")
    print(*(said or ["every file can be read, every mask fits, no image is there twice"]), sep="\n")
    return 2 if said else 0


@data_app.command()
def download(name: str, to: Path | None = None, archive: Path | None = None, yes: bool = False) -> None:
    """Get mvtec_ad, visa or btad: its licence is shown, its archive checked (or ARCHIVE, if you have it)."""
    from ..data import public

    if name not in public.SOURCES:
        raise InputError(f"there is no data set {name!r} to download; there are {', '.join(public.SOURCES)}.")
    source, target = public.SOURCES[name], (to or project_root() / "data" / name).expanduser()
    shown = printable(os.path.relpath(target))
    if public.is_finished(source, target):
        print(f"{shown} is there already, nothing to do")
    else:
        print(public.notice(source), f"to:       {shown}", sep="\n")
        if not yes:
            typer.confirm("Do you accept its licence?", abort=True)
        public.download(source, target, archive)
    print(f"next: python -m irf_lib data check --data {shlex.quote(shown)}")
    print(f"then: python -m irf_lib run reference --config data={shlex.quote(shown)} run={name}")
