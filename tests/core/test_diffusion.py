"""Denoisers behind one call, and training: deterministic, resumable, unconditional, in one process or two."""

import os
import subprocess
import sys

import pytest
import torch
from diffusers import DDPMScheduler

from irf_lib import diffusion
from irf_lib.diffusion import TrainSettings, alpha_bars, denoising_loss, train
from irf_lib.files import RunError
from irf_lib.irf import gaussian_optimal_eps
from irf_lib.networks.denoisers import Preconditioned, build_denoiser, gaussian_optimum
from irf_lib.networks.muon import Muon, orthogonalised
from irf_lib.scoring import location_vectors

X0 = torch.randn(24, 8, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.5 + 1
SETTINGS = TrainSettings(steps=12, batch_size=4, lr=1e-3, precision="fp32")
LEARNS = SETTINGS.model_copy(update={"steps": 60, "batch_size": 16, "lr": 3e-3})
ADAMW = SETTINGS.model_copy(update={"steps": 6, "optimizer": "adamw"})
each_kind = pytest.mark.parametrize("kind", ["dit", "unet"])


def tiny(seed=0, kind="dit"):
    width, depth = {"dit": (64, 1), "unet": (16, 2)}[kind]
    return build_denoiser(kind, channels=8, size=4, width=width, depth=depth, seed=seed)


def preconditioned(kind="dit", x0=X0):
    model = Preconditioned(tiny(kind=kind), x0.shape[1])
    model.fit_gaussian(x0)
    return model


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(seed=0, settings=SETTINGS, **keywords):
    """(weights, steps) of a run from its beginning, or from its checkpoint."""
    model = tiny(seed)
    steps = list(train(model, X0, settings, seed, **keywords))
    return weights(model), steps


def killed_after(steps, checkpoint, settings=SETTINGS, **keywords):
    run = train(tiny(), X0, settings, 0, checkpoint=checkpoint, checkpoint_seconds=0, **keywords)
    for _ in range(steps):
        next(run)
    run.close()  # the process dies here


@each_kind
def test_denoisers_share_one_call(kind):
    model, t = tiny(kind=kind).eval(), torch.tensor([3, 900])
    out = model(X0[:2], t)
    assert out.shape == X0[:2].shape
    assert torch.allclose(out[1:], model(X0[1:2], t[1:]), atol=1e-5), "images of a batch do not see each other"
    assert not torch.allclose(model(X0[:1], t[:1]), model(X0[:1], t[1:])), "t matters"


@each_kind
def test_preconditioned_starts_at_the_gaussian_optimum(kind):
    mixing = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    x0 = torch.einsum("dc,nchw->ndhw", mixing, X0) + 2
    model, vectors = preconditioned(kind, x0), location_vectors(x0)
    mu, cov = vectors.mean(dim=0), torch.cov(vectors.T)
    for t in (0, 200, 999):
        out = model(x0[:2], torch.tensor([t, t]))
        oracle = gaussian_optimal_eps(location_vectors(x0[:2]), t, mu, cov, alpha_bars())
        assert torch.allclose(location_vectors(out), oracle, atol=2e-3 * float(oracle.abs().max()))


def test_preconditioned_constants_are_the_closed_form_error():
    s = torch.tensor([4.0, 1.0, 0.25])
    x0 = torch.randn(4000, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * s.sqrt().view(1, 3, 1, 1)
    model = gaussian_optimum(x0)
    measured = denoising_loss(model, x0, [50, 500], seed=1, batch_size=4000)
    assert measured.shape == (2, 4000)
    assert torch.allclose(model.rest[[50, 500]] ** 2, measured.mean(dim=1), rtol=0.03)


@pytest.mark.parametrize(("token_share", "stops"), [(1.0, (1, 25, 59, 60)), (0.25, (25,))])
def test_training_learns_and_a_killed_run_resumes_to_the_same_steps_and_weights(tmp_path, token_share, stops):
    settings = LEARNS.model_copy(update={"token_share": token_share})
    whole, steps = trained(settings=settings)
    losses = [step.loss for step in steps]
    assert sum(losses[-20:]) < 0.75 * sum(losses[:20])
    assert [step.step for step in steps] == list(range(1, 61))
    assert max(step.lr for step in steps) == pytest.approx(3e-3) and steps[-1].lr < 1e-5
    for stop in stops:
        killed_after(stop, checkpoint := tmp_path / f"{stop}.pt", settings)
        model = tiny(seed=99)  # whatever the weights are before, the checkpoint's count
        again = list(train(model, X0, settings, 0, checkpoint=checkpoint))
        assert torch.equal(weights(model), whole)
        assert [(s.step, s.loss, s.lr) for s in again] == [(s.step, s.loss, s.lr) for s in steps]


@pytest.mark.parametrize("change", [{"seed": 1}, {"settings": LEARNS}, {"identity": "b"}, {}])
def test_a_foreign_or_damaged_checkpoint_is_not_trusted(tmp_path, change):
    killed_after(6, checkpoint := tmp_path / "checkpoint.pt", identity="a")
    if not change:
        content = bytearray(checkpoint.read_bytes())
        content[len(content) // 2] ^= 1
        checkpoint.write_bytes(content)
    expected, _ = trained(**{name: one for name, one in change.items() if name != "identity"})
    found, _ = trained(**({"identity": "a"} | change), checkpoint=checkpoint)
    assert torch.equal(found, expected), "started from the beginning"


def test_the_schedule_is_that_of_diffusers():
    theirs = DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    assert torch.equal(alpha_bars(), theirs.alphas_cumprod)


def test_same_seed_same_weights_whatever_the_global_state():
    # diffusers would drop a tenth of the class labels in training mode, from the global random state.
    torch.manual_seed(1)
    first, _ = trained(seed=5)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second, _ = trained(seed=5)
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random state is left alone"
    assert not torch.equal(first, trained(seed=6)[0])


def test_timesteps_are_drawn_where_loss_is_left_and_the_expected_loss_stays():
    uniform = torch.full((1000,), 1e-3, dtype=torch.float64)
    assert torch.allclose(diffusion.timestep_probabilities(tiny(), 0.9), uniform)
    model, found = gaussian_optimum(X0), []
    p = diffusion.timestep_probabilities(model, 0.9)
    assert float(p.sum()) == pytest.approx(1) and float(p.min()) >= 0.1e-3
    assert torch.equal(p.argsort(), model.rest.double().square().argsort()), "as the Gaussian optimum's loss"
    for one in (uniform, p):
        x0, t, eps = diffusion.training_batch(X0, 20_000, torch.Generator().manual_seed(1), one)
        found.append(float(diffusion.ddpm_loss(model, x0, t, eps, alpha_bars(), (1 / (1000 * one)).float()[t])))
    assert found[0] == pytest.approx(found[1], rel=0.02)


@torch.no_grad()
def test_all_tokens_in_any_order_are_the_whole_map():
    model = preconditioned().eval()
    for parameter in model.net.parameters():  # the last layer starts at zero, and would hide everything
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    t, keep = torch.tensor([3, 200, 900]), torch.stack([torch.randperm(model.tokens) for _ in range(3)])
    rows = torch.arange(3)[:, None]
    eps = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(2))
    whole, x, noise = (model.tokens_of(one)[rows, keep] for one in (model(X0[:3], t), X0[:3], eps))
    assert torch.allclose(model.at(x, t, keep), whole, atol=1e-4 * float(whole.abs().max()))
    few, abar = model.at(x[:, :4], t, keep[:, :4]), alpha_bars()
    assert few.shape == (3, 4, 8) and not torch.allclose(few, whole[:, :4], atol=1e-3), "these see no others"
    losses = [
        float(diffusion.ddpm_loss(model, *one)) for one in ((X0[:3], t, eps, abar), (x, t, noise, abar, None, keep))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    drawn = [diffusion.training_batch(one, 2, torch.Generator().manual_seed(0), keep=of)[0]
             for one, of in ((X0, None), (model.tokens_of(X0), keep[:2]))]  # fmt: skip
    assert torch.equal(model.tokens_of(drawn[0])[rows[:2], keep[:2]], drawn[1]), "of the same images"


def test_a_unet_has_no_tokens():
    shared = SETTINGS.model_copy(update={"steps": 2, "token_share": 0.25})
    runs = [train(tiny(kind="unet"), X0, one, 0) for one in (shared, shared.model_copy(update={"token_share": 1.0}))]
    assert [step.loss for step in runs[0]] == [step.loss for step in runs[1]]


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    model = preconditioned()
    adamw, muon = diffusion.build_optimizers(model, SETTINGS)
    groups = [{id(p) for group in one.param_groups for p in group["params"]} for one in (adamw, muon)]
    assert groups[0] | groups[1] == {id(p) for p in model.parameters()} and not groups[0] & groups[1]
    names = {name for name, p in model.named_parameters() if id(p) in groups[1]}
    assert names and all("attn1" in name or ".ff." in name for name in names)
    assert len(diffusion.build_optimizers(model, SETTINGS.model_copy(update={"optimizer": "adamw"}))) == 1
    assert len(diffusion.build_optimizers(preconditioned("unet"), SETTINGS)) == 1


@pytest.mark.parametrize("shape", [(64, 192), (192, 64), (64, 64)])
def test_muon_in_bf16_is_torchs(shape):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    options = {"lr": 0.05, "weight_decay": 0.01}
    pairs = [(ours, Muon([ours], **options)), (theirs, torch.optim.Muon([theirs], **options))]
    schedulers = [torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1, 5) for _, optimizer in pairs]
    for _ in range(8):
        gradient = torch.randn(shape, generator=generator)
        for (parameter, optimizer), scheduler in zip(pairs, schedulers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
            scheduler.step()
        assert torch.equal(ours, theirs) and not torch.equal(ours, start)
    states = [optimizer.state_dict()["state"] for _, optimizer in pairs]
    assert states[0].keys() == states[1].keys() and states[0][0].keys() == states[1][0].keys()


def test_muon_orthogonalises_in_the_precision_that_the_device_computes_in(monkeypatch):
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(diffusion, "computes_in_bf16", lambda device, native=native: native)
        assert diffusion.build_optimizers(tiny(), SETTINGS)[1].dtype == dtype
    matrix = torch.randn(64, 192, generator=torch.Generator().manual_seed(0))
    exact = orthogonalised(matrix)
    s = torch.linalg.svdvals(exact)
    assert exact.dtype == torch.float32 and s.min() > 0.6 and s.max() < 1.3
    coarse = orthogonalised(matrix.bfloat16())
    assert coarse.dtype == torch.bfloat16 and (coarse - exact).norm() < 0.03 * exact.norm()


def test_bf16_is_for_devices_that_compute_in_it(monkeypatch, recwarn):
    for flag, capability, native in ((True, "AVX512", True), (True, "AVX2", False), (False, "AVX512", False)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda flag=flag: flag)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        assert diffusion.resolve_precision("auto", torch.device("cpu")) == ("bf16" if native else "fp32")
        assert diffusion.resolve_precision("fp32", torch.device("cpu")) == "fp32"
        assert not recwarn.list
    with pytest.warns(UserWarning, match="^cpu does not compute in bf16 here; fp32 takes its place.$"):
        assert diffusion.resolve_precision("bf16", torch.device("cpu")) == "fp32"


def test_bf16_on_the_cpu_is_close_to_fp32(monkeypatch):
    monkeypatch.setattr(diffusion, "computes_in_bf16", lambda device: True)  # emulated, where it is not native
    wide, _ = trained()
    narrow, _ = trained(settings=SETTINGS.model_copy(update={"precision": "bf16"}))
    assert 0 < (wide - narrow).norm() < 0.05 * wide.norm() and narrow.dtype == torch.float32


IN_TWO = """
import sys, torch
from accelerate import Accelerator, debug_launcher
from tests.core.test_diffusion import ADAMW, trained

def work(out):
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    found, steps = trained(settings=ADAMW, accelerator=accelerator)
    if accelerator.is_main_process:
        torch.save((found, [step.loss for step in steps], accelerator.num_processes), out)

if __name__ == "__main__":
    debug_launcher(work, (sys.argv[1],), num_processes=2)
"""


def test_two_processes_learn_what_one_does_but_for_rounding(tmp_path, pytestconfig):
    pytest.importorskip("accelerate")
    (tmp_path / "work.py").write_text(IN_TWO)
    environment = os.environ | {"PYTHONPATH": str(pytestconfig.rootpath)}
    subprocess.run([sys.executable, tmp_path / "work.py", tmp_path / "two"], check=True, timeout=240, env=environment)
    found, losses, n = torch.load(tmp_path / "two", weights_only=True)
    expected, steps = trained(settings=ADAMW)
    assert n == 2 and losses == pytest.approx([step.loss for step in steps], rel=1e-4)
    assert torch.allclose(found, expected, atol=1e-3)


def test_diverging_training_says_so(refused):
    refused("at step 1; lower lr", next, train(tiny(), torch.full_like(X0, torch.nan), SETTINGS, 0), kind=RunError)


def test_the_best_device_that_is_there_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for there, expected in ((False, "cpu"), (True, "mps")):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=there: there)
        assert diffusion.resolve_device("auto").type == expected
