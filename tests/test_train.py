"""Training on several processes is training on one: the same loss curve and detector; a killed launch goes on."""

import importlib.util
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from PIL import Image
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from irf_lib import diffusion
from irf_lib import train as trainer
from irf_lib.diffusion import Processes, TrainSettings, build_denoiser, train
from irf_lib.runs import Run
from irf_lib.stages import ParameterError
from irf_lib.storage import load_tensors

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"backbone": "rgb", "image_size": 32, "feature_size": 8, "width": 64, "depth": 1, "steps": 16}
SETTINGS |= {"batch_size": 4, "precision": "fp32", "alpha": 0.3}


@pytest.fixture
def nuts(tmp_path):
    """A folder of twelve good images of 32 px."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "nuts"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
    return folder


def options(data, out, **changes):
    pairs = [word for name, value in (SETTINGS | changes).items() for word in ("--set", f"{name}={value}")]
    return ["--data", str(data), "--seed", "0", "--out", str(out), "--cpu", *pairs]


class Threads(Processes):
    """One of several that train in the threads of one process."""

    def __init__(self, index, barrier, shared):
        self.index, self.count, self.barrier, self.shared = index, barrier.parties, barrier, shared

    def mean(self, tensor):
        self.shared[self.index] = tensor
        self.barrier.wait()
        mean = sum(self.shared) / self.count
        self.barrier.wait()
        return mean


def trained_by(count, settings, x0):
    """(weights, losses) of each of ``count`` processes that train together, in double precision."""
    barrier, shared, found = threading.Barrier(count, timeout=60), [None] * count, [None] * count

    models = [diffusion.Preconditioned(build_denoiser("dit", 8, 4, 64, 1, seed=0), 8) for _ in range(count)]
    for model in models:
        model.fit_gaussian(x0.float())
        model.double()

    def one(index):
        model = models[index]
        processes = Threads(index, barrier, shared) if count > 1 else Processes()
        losses = [step.loss for step in train(model, x0, settings, 0, processes=processes)]
        found[index] = torch.cat([p.detach().flatten() for p in model.parameters()]), losses

    threads = [threading.Thread(target=one, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("count", [2, 4])
def test_the_mean_of_the_slices_is_the_batch(count):
    # In double precision, the loss alone in single: Muon makes an update of full size of whatever gradient there is, so
    # that in single precision the rounding of a nearly vanishing one moves weights, by a percent, that do not matter.
    x0 = torch.randn(24, 8, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    settings = TrainSettings(steps=8, batch_size=8, lr=1e-3, precision="fp32")
    ((alone, losses),) = trained_by(1, settings, x0)
    for weights, same_losses in trained_by(count, settings, x0):
        assert same_losses == pytest.approx(losses, rel=3e-7)
        assert (weights - alone).norm() < 1e-12 * alone.norm()


def test_one_process_takes_the_steps_of_a_plain_loop():
    x0 = torch.randn(24, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    settings = TrainSettings(steps=8, batch_size=4, lr=1e-3, precision="fp32")
    model = build_denoiser("dit", 8, 4, 64, 1, seed=0)
    losses = [step.loss for step in train(model, x0, settings, seed=0)]

    plain, mean = (build_denoiser("dit", 8, 4, 64, 1, seed=0).train() for _ in range(2))
    generator, uniform = torch.Generator().manual_seed(0), diffusion.timestep_probabilities(plain, 0.9)
    optimizers = diffusion.build_optimizers(plain, settings)
    schedulers = [get_cosine_schedule_with_warmup(one, 1, 8) for one in optimizers]
    plain_losses, averaged = [], AveragedModel(mean, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))
    for _ in range(8):
        batch, t, eps = diffusion.training_batch(x0, 4, generator, uniform)
        loss = diffusion.ddpm_loss(plain, batch, t, eps, diffusion.alpha_bars(), (1 / (1000 * uniform)).float()[t])
        plain.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), settings.grad_clip)
        for one in (*optimizers, *schedulers):
            one.step()
        averaged.update_parameters(plain)
        plain_losses.append(loss.item())
    assert losses == plain_losses, "bit for bit"
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), averaged.module.parameters(), strict=True))


class Several(Processes):
    count = 3


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path, nuts):
    with pytest.raises(ValueError, match="batch_size 4 cannot be divided among 3 processes"):
        next(train(build_denoiser("dit", 8, 4, 64, 1, 0), torch.zeros(3, 8, 4, 4), TrainSettings(batch_size=4), 0,
                   processes=Several()))  # fmt: skip
    parameters = {"data": str(nuts), "out": str(tmp_path / "out"), "settings": SETTINGS}
    with pytest.raises(ParameterError, match="among 3 processes; choose another --set batch_size"):
        trainer._check(parameters, Several())


@pytest.mark.parametrize(("mine", "theirs"), [(0, 1), (300, 301), (34_000, 34_001)])
def test_processes_with_different_checkpoints_say_so(mine, theirs):
    class Apart(Several):
        count = 2
        sent = [theirs, ((theirs - mine) / 2) ** 2]  # the other's steps, then their squared distance from the mean

        def mean(self, tensor):
            return (tensor + self.sent.pop(0)) / 2

    with pytest.raises(RuntimeError, match="one results folder in common"):
        diffusion._require_same(Apart(), mine, torch.device("cpu"))


def test_train_asks_whether_the_checkpoints_are_the_same(monkeypatch):
    asked = []
    monkeypatch.setattr(diffusion, "_require_same", lambda processes, steps, device: asked.append(steps))
    next(train(build_denoiser("dit", 8, 4, 64, 1, 0), torch.zeros(3, 8, 4, 4), TrainSettings(batch_size=3), 0))
    assert asked == [0]


def test_without_accelerate_it_says_what_to_install(tmp_path, nuts, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert trainer.main(options(nuts, tmp_path / "out")) == 2
    assert capsys.readouterr().err == "error: irf_lib.train needs accelerate; install the extra: " \
        "pip install -e '.[scale]'\n"  # fmt: skip


def accelerate_is_installed():
    if not importlib.util.find_spec("accelerate"):
        pytest.skip("accelerate is not installed: pip install -e '.[scale]'")


# --- with accelerate -----------------------------------------------------------------------------------------------

# The same module, but a checkpoint after every step, and steps that last long enough to be killed between.
SLOWLY = """
import functools, sys, time
from irf_lib import detector, train

whole = detector.train

def slowly(*arguments, **keywords):
    for step in whole(*arguments, **keywords, checkpoint_seconds=0):
        yield step
        time.sleep(0.3)

detector.train = slowly
sys.exit(train.main())
"""


def launch(words, log):
    """``accelerate launch`` with two processes, gloo between them."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*command, *map(str, words)], cwd=ROOT, env=environment, stdout=log, stderr=log)


def wait_for(condition, process, log):
    """Until ``condition()``; fails with the log's end if the process ends before, or after two minutes."""
    end = time.monotonic() + 120
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            pytest.fail(f"exit status {process.poll()}: {log.read_text()[-2000:]}")
        time.sleep(0.05)


def test_two_processes_killed_and_resumed_are_one(tmp_path, nuts, capsys):
    accelerate_is_installed()
    import psutil

    alone, together = tmp_path / "alone", tmp_path / "together"
    assert trainer.main(options(nuts, alone)) == 0
    assert "at step 16" in capsys.readouterr().out
    (saved,) = alone.glob("detectors/nuts/*/seed0/detector.json")
    folder = together / saved.parent.relative_to(alone)

    (script := tmp_path / "slowly.py").write_text(SLOWLY)
    with (log := tmp_path / "log").open("w") as file:
        killed = launch([script, *options(nuts, together)], file)
        wait_for((folder / "checkpoint.json").is_file, killed, log)
        workers = psutil.Process(killed.pid).children(recursive=True)
        killed.kill()  # SIGKILL, and to the launcher alone: its processes must notice
        killed.wait()
        assert len(workers) == 2 and not psutil.wait_procs(workers, timeout=60)[1]
        before, _ = load_tensors(folder / "checkpoint.json")
        assert 0 < len(before["history"]) < 16 and not (folder / "detector.json").exists()
        resumed = launch(["-m", "irf_lib.train", *options(nuts, together)], file)
        wait_for((folder / "detector.json").is_file, resumed, log)
        assert resumed.wait(60) == 0, log.read_text()[-2000:]

    one, two = (load_tensors(path / "detector.json") for path in (saved.parent, folder))
    assert torch.equal(two[0]["history"][: len(before["history"])], before["history"]), "it went on"
    assert "at step 16" in log.read_text() and "2 processes" in log.read_text()
    losses, same_losses = (tensors["history"][:, 1] for tensors, _ in (one, two))
    assert len(losses) == 16 and torch.allclose(losses, same_losses, rtol=1e-4)
    assert not torch.equal(losses, same_losses), "these were two"
    assert one[1]["extra"] == two[1]["extra"], "one identity"
    scores = [tensors["calibration_scores"] for tensors, _ in (one, two)]
    assert torch.allclose(*scores, rtol=1e-3)
    assert not list(folder.glob("*checkpoint*"))

    written = (folder / "detector.json").stat().st_mtime_ns
    run = Run.open("03_train", data=str(nuts), out=str(together), settings=SETTINGS, seeds=[0], device="cpu")
    assert run.fit_detector(run.jobs[0], progress=False).calibration_scores.tolist() == scores[1].tolist()
    assert (folder / "detector.json").stat().st_mtime_ns == written, "03 loads it and trains nothing"
