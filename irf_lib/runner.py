"""The runner: notebooks through papermill, side by side where none reads what another is still writing."""

from __future__ import annotations

import ast
import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from . import datasets
from .runs import Run
from .stages import STAGES, ParameterError, RunError, RunParameters, notebook_paths, project_root
from .storage import cannot_write


def run_notebooks(
    parameters: Mapping[str, Any],
    extras: Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
    force: bool = False,
    jobs: int = 0,
    apart: bool = False,
) -> Path:
    """Execute the notebooks through papermill; returns the results folder.

    ``parameters`` are RunParameters, ``extras`` parameters of single notebooks, ``only`` stage names or their numbers.
    Stages whose outputs are current are skipped unless ``force``. Up to ``jobs`` notebooks run side by side, each as
    soon as those it reads from are done, and share the cores; 0 is four, or as many as there are cores, on a CPU, and
    one on a GPU. ``apart`` keeps the executed notebooks where runs of other categories or seeds into the same folder do
    not put theirs (:meth:`Run.executed_path`). Everything is validated before the first notebook starts. Raises
    RunError or DataError for wrong input, and RunError at the first failing cell, once the notebooks that were running
    beside it have ended.
    """
    root = project_root()
    paths = {path.stem: path for path in _select(notebook_paths(root), only)}
    known = {name: notebook_parameters(path) for name, path in paths.items()}
    _check_extras(known, extras or {})
    if jobs < 0:
        raise ParameterError(f"jobs must be 0 (as many as fit) or more, got {jobs}")
    first = Run.open(next(iter(STAGES)), **parameters)
    for category in first.categories:
        datasets.check_category(category)
    print(
        f"preset {first.parameters.preset}, data {first.dataset} ({', '.join(c.name for c in first.categories)}), "
        f"seeds {list(first.seeds)}, results in {first.show(first.folder)}"
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = min(jobs or (min(4, cores) if first.device.type == "cpu" else 1), len(paths))
    threads_given = os.environ.get("OMP_NUM_THREADS")

    def one(name: str, side_by_side: int) -> None:
        head = f"[{list(paths).index(name) + 1}/{len(paths)}] {name}"
        shared = {key: value for key, value in parameters.items() if key in known[name]}
        own = {key: default for key, (_, default) in known[name].items() if key not in RunParameters.model_fields}
        own |= {key: value for key, value in (extras or {}).items() if key in own}
        if STAGES[name].needs_labels and not first.labelled:
            print(f"{head}: no labelled test images, skipped", flush=True)
            return
        run = Run.open(name, own, **shared)
        executed = run.executed_path(apart)
        with run.executing():
            # A copy that is not complete was left by a run that was killed: the complete one is of an earlier run.
            if not force and executed.is_file() and not run.partial_path.exists() and run.is_current():
                print(f"{head}: current, skipped", flush=True)
                return
            print(f"{head}: {STAGES[name].question}", flush=True)
            # Kernels inherit it. Notebooks that run side by side are given the same, one that runs alone has no
            # neighbour.
            os.environ["OMP_NUM_THREADS"] = threads_given or str(max(1, cores // side_by_side))
            seconds = _execute(run, paths[name], executed, shared | own)
            print(f"{head}: done in {seconds:.0f} s", flush=True)

    try:
        with contextlib.chdir(root):  # papermill resolves paths against the working directory, not its cwd
            _in_order(list(paths), one, jobs)
    finally:
        if threads_given is None:
            os.environ.pop("OMP_NUM_THREADS", None)
    return first.folder


def _in_order(names: Sequence[str], start: Callable[[str, int], None], jobs: int) -> None:
    """Call ``start(name, jobs)`` for every stage, up to ``jobs`` at once, none before those it reads from.

    A stage that has to be ``alone`` comes after all others. The first exception is raised once what runs has ended,
    and nothing is started after it.
    """
    needs = {
        name: set(names) - {name}
        if STAGES[name].alone
        else {other for other in names if set(STAGES[other].writes) & set(STAGES[name].reads)} - {name}
        for name in names
    }

    def followers(name: str) -> int:
        direct = [other for other in names if name in needs[other] and not STAGES[other].alone]
        return len(direct) + sum(followers(other) for other in direct)

    waiting = sorted(names, key=followers, reverse=True)  # what most others wait for goes first
    running: dict[Future, str] = {}
    done: set[str] = set()
    failed: BaseException | None = None
    with ThreadPoolExecutor(jobs) as pool:
        while running or (waiting and failed is None):
            for name in [] if failed else [one for one in waiting if needs[one] <= done][: jobs - len(running)]:
                waiting.remove(name)
                running[pool.submit(start, name, 1 if STAGES[name].alone else jobs)] = name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                done.add(running.pop(future))
                failed = failed or future.exception()
                if failed and running:
                    print(f"a notebook failed; waiting for {', '.join(sorted(running.values()))} to end", flush=True)
    if failed:
        raise failed


def _select(paths: Sequence[Path], only: Sequence[str]) -> list[Path]:
    if not only:
        return list(paths)
    chosen = [path for path in paths if any(path.stem == name or path.stem.startswith(f"{name}_") for name in only)]
    for name in only:
        if not any(path.stem == name or path.stem.startswith(f"{name}_") for path in paths):
            raise ParameterError(f"no notebook {name!r}; there are {', '.join(path.stem for path in paths)}")
    return chosen


def notebook_parameters(path: Path) -> dict[str, tuple[str, Any]]:
    """A notebook's parameters as papermill reads them: name -> (type annotated, default)."""
    from papermill import inspect_notebook

    found = inspect_notebook(str(path)).items()
    return {name: (one["inferred_type_name"].strip(), ast.literal_eval(one["default"])) for name, one in found}


_TYPES = {"int": int, "float": (int, float), "str": str, "bool": bool, "list": list, "dict": dict}


def _check_extras(known: Mapping[str, Mapping[str, tuple[str, Any]]], extras: Mapping[str, Any]) -> None:
    for name, value in extras.items():
        kinds = {found[name][0] for found in known.values() if name in found}
        if name in RunParameters.model_fields:
            raise ParameterError(f"{name} has an option of its own (see --help), or goes to --set")
        if not kinds:
            own = sorted({n for found in known.values() for n in found} - set(RunParameters.model_fields))
            raise ParameterError(f"no notebook has a parameter {name!r}; there are {', '.join(own) or 'none'}")
        for kind in kinds:
            expected = _TYPES.get(kind)
            if expected and (not isinstance(value, expected) or (isinstance(value, bool) and kind != "bool")):
                raise ParameterError(f"parameter {name} must be {kind}, got {value!r}")


def _execute(run: Run, path: Path, executed: Path, parameters: Mapping[str, Any]) -> float:
    """One notebook through papermill. The executed copy gets its name only when it is complete.

    The working directory has to be the project's.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    start = time.monotonic()
    partial = run.partial_path
    try:
        for written in (partial, executed):
            written.parent.mkdir(parents=True, exist_ok=True)
        run.forget()  # so that a record found afterwards is this execution's
        papermill.execute_notebook(
            os.path.relpath(path, run.root),  # relative: executed copies name no folder of this machine
            os.path.relpath(partial, run.root),
            parameters=dict(parameters),
            cwd=".",
            kernel_name="python3",
            progress_bar=False,
            # Encrypted loopback sockets: nobody else on a shared machine reads them, and the kernel does not warn.
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),
        )
    except DeadKernelError as error:
        raise RunError(
            f"{path.stem}: the kernel died ({error}), most often for want of memory; what ran is in {run.show(partial)}"
        ) from None
    except PapermillExecutionError as error:
        raise RunError(
            f"{path.stem} failed in cell {error.exec_count}: {error.ename}: {error.evalue}\n"
            f"The partly executed notebook is {run.show(partial)}"
        ) from None
    except OSError as error:  # the copy, the record, or Jupyter's own files
        named = Path(error.filename) if isinstance(error.filename, str) else partial
        raise RunError(f"{path.stem} stopped: {cannot_write(named, error)}") from None
    if not run.is_finished():
        raise RunError(f"{path.stem} ran to its end without run.finish(); see {run.show(partial)}")
    try:
        os.replace(partial, executed)
    except OSError as error:
        raise RunError(f"{path.stem}: {cannot_write(executed, error)}") from None
    return time.monotonic() - start
