"""Train a run's detectors on several processes or GPUs: ``accelerate launch ... -m irf_lib.train ...``.

The detectors land where 03_train looks for them, with the same identity, so 03 then loads them. Every process draws the
same batches from the seed and takes its share of each; gradients are averaged over the processes. So what is learnt is
what one process learns, but for the rounding of a mean that is taken in another order. Several machines need one
results folder in common. Started without ``accelerate launch`` it is one process. Exit status as of ``irf_lib``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import datasets
from .__main__ import EXPECTED, add_run_options, exit_status, run_parameters
from .diffusion import Processes
from .runs import Run
from .stages import ParameterError

if TYPE_CHECKING:
    from accelerate import Accelerator

STAGE = "03_train"
PATIENCE = timedelta(hours=6)  # how long processes wait for the main one: it computes features while they do


class Launched(Processes):
    """The processes that ``accelerate launch`` started."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.index, self.count = accelerator.process_index, accelerator.num_processes
        self.launcher = os.getppid()

    def mean(self, tensor: Tensor) -> Tensor:
        # A killed launcher leaves its processes running, and the next launch would train beside them into one folder.
        if os.getppid() != self.launcher:
            raise SystemExit("the launcher is gone; the same command goes on from the last checkpoint")
        return self.accelerator.reduce(tensor, reduction="mean")

    def main_first(self) -> AbstractContextManager:
        return self.accelerator.main_process_first()


def _check(parameters: dict[str, Any], processes: Processes) -> None:
    """Raise one of EXPECTED for whatever is wrong with the command or the data."""
    run = Run.open(STAGE, **parameters)
    try:
        processes.share(run.settings.batch_size)
    except ValueError as error:
        raise ParameterError(f"{error}; choose another --set batch_size, or --num_processes") from None
    for category in run.categories:
        datasets.check_category(category)


def _verdict(arguments: argparse.Namespace, processes: Launched) -> tuple[int, str]:
    """(exit status, message) of the checks, made by the main process for all: (0, "") if nothing is wrong."""
    from accelerate.utils import broadcast_object_list

    found = [(0, "")]
    if processes.is_main:
        try:
            _check(run_parameters(arguments), processes)
        except EXPECTED as error:
            found = [(exit_status(error), str(error))]
    return broadcast_object_list(found)[0]


def _train(arguments: argparse.Namespace, processes: Launched) -> int:
    status, message = _verdict(arguments, processes)
    if status:
        if processes.is_main:
            print(f"error: {message}", file=sys.stderr)
        return status
    run = Run.open(STAGE, **run_parameters(arguments), device=str(processes.accelerator.device))
    for job in run.jobs:
        detector = run.fit_detector(job, processes.is_main, processes)
        if processes.is_main:
            last = detector.history[-1]
            print(f"{job.label}: loss {last.loss:.3f} at step {last.step}, {detector.train_seconds:.0f} s, "
                  f"{processes.count} processes; {run.show(run.detector_folder(job))}", flush=True)  # fmt: skip
    processes.accelerator.wait_for_everyone()  # the main process may still be writing
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="accelerate launch -m irf_lib.train", description="Train the detectors of a run on several processes."
    )
    add_run_options(parser)
    parser.add_argument("--cpu", action="store_true", help="leave GPUs alone")
    arguments = parser.parse_args(argv)
    try:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs
    except ImportError:
        print("error: irf_lib.train needs accelerate; install the extra: pip install -e '.[scale]'", file=sys.stderr)
        return 2
    # Where there is no GPU, accelerate must be told so, or each process that it started believes to be alone.
    cpu = arguments.cpu or not torch.cuda.is_available()
    accelerator = Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    try:
        return _train(arguments, Launched(accelerator))
    finally:
        accelerator.end_training()


if __name__ == "__main__":
    sys.exit(main())
