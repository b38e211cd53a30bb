"""A process that has imported irf_lib and forks a child for each order: a run that costs no import, and may be killed.

Orders come as JSON lines on standard input, answers go as lines to standard output:
``{"start": NAME, "log": FILE, ...}`` forks a child that calls ORDERS[NAME] with the rest, and answers its process id,
which is that of its process group too; ``{"wait": PID}`` answers its exit status once it has ended (-9: killed).
Nothing is computed in this process, so that a fork inherits no thread.
"""

import contextlib
import io
import json
import os
import re
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("MPLBACKEND", "Agg")

import nbformat
import papermill  # noqa: F401  what a run would import late is here from the start
import torch
from matplotlib.figure import Figure
from scipy import stats  # noqa: F401

from irf_lib import __main__, baselines, detector, diffusion, plots, runs, storage, timesteps  # noqa: F401

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def notebook(name: str, parameters: dict) -> None:
    """Run a notebook's own code cells, with ``parameters`` in place of the defaults that it has."""
    names = {"__name__": "__main__"}
    path = next(NOTEBOOKS.glob(f"{name}_*.ipynb"))
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, path.name, "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                names |= {key: value for key, value in parameters.items() if key in names}


def work(parameters: dict, stages: list[str]) -> None:
    """What the runner does, without papermill: each stage that is not current, and a checkpoint at every step.

    A line TRAINING stands in the log for each training that is begun or gone on with."""

    def train(*arguments, **keywords):
        print("TRAINING", flush=True)
        return diffusion.train(*arguments, **keywords, checkpoint_seconds=0.0)

    detector.train = train
    for name in stages:
        stage = next(one for one in runs.STAGES if one.startswith(name))
        run = runs.Run.open(stage, **parameters)
        if not run.is_current():
            notebook(name, parameters)


def bind(parameters: dict) -> None:
    """Open the results folder, and nothing else."""
    runs.Run.open("00_start_here", **parameters)


def command(arguments: list[str]) -> int:
    """The command line, as a user types it."""
    return __main__.main(arguments)


ORDERS = {"work": work, "bind": bind, "command": command}


def interfere(call: str, pattern: str, how: str) -> None:
    """At the first call of ``call`` (such as os.replace) with an argument that matches ``pattern``: kill this process
    group before it, after it, or with ``half`` of what it was to write; or (``how`` slow) make every such call take a
    while."""
    owner, _, name = call.rpartition(".")
    place = {"os": os, "Path": Path, "Run": runs.Run, "storage": storage}[owner]
    original = getattr(place, name)

    def wrapped(*arguments, **keywords):
        if not any(re.search(pattern, str(one)) for one in arguments):
            return original(*arguments, **keywords)
        if how == "slow":
            time.sleep(0.5)
            return original(*arguments, **keywords)
        if how == "half":
            path, content = arguments[:2]
            original(path, content[: len(content) // 2], **keywords)
        elif how == "after":
            original(*arguments, **keywords)
        os.killpg(0, signal.SIGKILL)

    setattr(place, name, wrapped)


def limit_files(size: int) -> None:
    """Let no file grow beyond ``size`` bytes: writing more is an OSError, as on a full disk; kernels inherit it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def child(order: SimpleNamespace) -> int:
    os.setpgid(0, 0)
    os.chdir(order.cwd)
    with open(order.log, "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            for one in order.interfere:
                interfere(*one)
            if order.limit:
                limit_files(order.limit)
            torch.set_num_threads(1)
            warnings.simplefilter("always")
            return ORDERS[order.start](**order.arguments) or 0
        except BaseException:
            traceback.print_exc(file=log)
            return 70
        finally:
            sys.stdout.flush()


def warm_up() -> None:
    """Draw something, once for all children: matplotlib's fonts and parsers cost a quarter of a run."""
    plots.use_style()
    figure = Figure(layout="constrained")
    figure.subplots().loglog([1, 1e3], [1, 1e3])
    for kind in ("pdf", "png"):
        figure.savefig(io.BytesIO(), format=kind)


def main() -> None:
    warm_up()
    print("ready", flush=True)
    for line in sys.stdin:
        order = SimpleNamespace(**{"interfere": [], "limit": 0, **json.loads(line)})
        if hasattr(order, "wait"):
            print(os.waitstatus_to_exitcode(os.waitpid(order.wait, 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            sys.stdin.close()
            sys.stdout = io.StringIO()
            os._exit(child(order))
        with contextlib.suppress(OSError):  # the child does it too; whoever is first, the group is there from now on
            os.setpgid(pid, pid)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
