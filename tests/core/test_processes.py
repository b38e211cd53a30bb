"""Two processes learn what one learns, but for rounding."""

import os
import subprocess
import sys

import pytest
import torch

from irf_lib.diffusion import TrainSettings, train
from irf_lib.networks.denoisers import build_denoiser

pytest.importorskip("accelerate")

SCRIPT = """
import sys, torch
from accelerate import Accelerator, debug_launcher
from tests.core.test_processes import learn

def work(out):
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    found = learn(accelerator)
    if accelerator.is_main_process:
        torch.save(found | {"n": accelerator.num_processes}, out)

if __name__ == "__main__":
    debug_launcher(work, (sys.argv[1],), num_processes=2)
"""


def learn(accelerator=None):
    x0 = torch.randn(24, 8, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.5 + 1
    settings = TrainSettings(steps=6, batch_size=4, lr=1e-3, precision="fp32", optimizer="adamw")
    model = build_denoiser("dit", 8, 4, 64, 1, 0)
    losses = [step.loss for step in train(model, x0, settings, 0, accelerator=accelerator)]
    return {"losses": losses, "weights": model.state_dict()}


def test_two_processes_learn_what_one_does(tmp_path, pytestconfig):
    script = tmp_path / "work.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(pytestconfig.rootpath)}
    subprocess.run([sys.executable, script, tmp_path / "two"], check=True, timeout=240, env=environment)
    one, two = learn(), torch.load(tmp_path / "two", weights_only=True)
    assert two["n"] == 2 and two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    for name, weight in one["weights"].items():
        assert torch.allclose(two["weights"][name], weight, atol=1e-3), name
