"""The DDPM: noise schedule, loss, and training as a generator that yields its statistics.

The objective is the simple DDPM loss (Ho et al. 2020, arXiv 2006.11239, Eq. 14): plain MSE on eps, mean over uniform t,
unconditional. Denoisers are those of denoisers.py: ``denoiser(x, t) -> eps``.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .files import RunError, file_sha256, write_atomically
from .irf import Denoiser, noised
from .networks.muon import Muon

if TYPE_CHECKING:
    from accelerate import Accelerator

T = 1000


def alpha_bars(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """abar_t for t = 0..T-1, shape (T,): the published linear schedule, beta from 1e-4 to 0.02, in float32.

    The values are those of diffusers' DDPMScheduler, which takes seconds to import; a test holds the two together."""
    beta = torch.linspace(1e-4, 0.02, T, dtype=torch.float32, device="cpu")
    return torch.cumprod(1 - beta, dim=0).to(device, dtype)


def resolve_device(name: str = "auto") -> torch.device:
    """``auto`` takes cuda, then mps, then cpu. Raises ValueError for a device that is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available.get(name.split(":")[0], False):
        there = ", ".join(kind for kind, there in available.items() if there)
        raise ValueError(f"device {name!r} is not available here; use one of: auto, {there}")
    return torch.device(name)


def computes_in_bf16(device: torch.device | str) -> bool:
    """Whether bf16 is native to the device, and no emulation that costs more than fp32.

    A CPU needs AVX512_BF16, and torch must be allowed to use it: ATEN_CPU_CAPABILITY=avx2 makes any CPU an AVX2 one."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        return torch.cpu._is_avx512_bf16_supported() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return False


def resolve_precision(precision: str, device: torch.device | str) -> str:
    """bf16 or fp32: ``auto`` is bf16 where the device computes in it. Where it does not, a warning says so."""
    native = computes_in_bf16(device)
    if precision == "bf16" and not native:
        warnings.warn(f"{torch.device(device).type} does not compute in bf16 here; fp32 takes its place.", stacklevel=1)
    return "bf16" if native and precision != "fp32" else "fp32"


class TrainSettings(BaseModel):
    """How the denoiser is trained; unknown names and wrong types are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    steps: int = Field(1000, ge=1)  # optimiser steps
    epochs: int = Field(0, ge=0)  # if not 0, replaces steps: passes over the images
    batch_size: int = Field(16, ge=1)  # images a step, drawn with replacement
    optimizer: Literal["muon", "adamw"] = "muon"  # muon: for a DiT's hidden matrices, AdamW for all the rest
    lr: float = Field(2e-3, gt=0)  # AdamW's peak learning rate
    muon_lr: float = Field(0.05, gt=0)  # Muon's
    warmup: float = Field(0.05, ge=0, le=1)  # share of the steps
    ema: float = Field(0.1, gt=0, le=1)  # time constant, as a share of the steps
    weight_decay: float = Field(0.0, ge=0)
    grad_clip: float = Field(1.0, gt=0)  # largest gradient norm
    importance: float = Field(0.9, ge=0, lt=1)  # share of timesteps drawn where there is more to learn; 0 is uniform
    token_share: float = Field(0.25, gt=0, le=1)  # of a DiT's tokens, what a step trains on; the last tenth takes all
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 autocast where the device computes in it

    def for_images(self, n: int) -> Self:
        """The same settings with ``epochs`` turned into the steps that they are for ``n`` images."""
        return self.model_copy(update={"steps": self.epochs * math.ceil(n / self.batch_size)}) if self.epochs else self


@dataclass(frozen=True)
class TrainStep:
    """One optimiser step's statistics."""

    step: int  # 1..steps
    loss: float  # MSE on eps, an unbiased estimate of its mean over uniform t; 1.0 is what predicting zero gives
    lr: float  # AdamW's
    grad_norm: float  # before clipping
    seconds: float  # spent training so far, the time of earlier sessions of a resumed run included


def pack_history(history: list[TrainStep]) -> Tensor:
    """(len(history), 5) float64, for a file."""
    return torch.tensor([astuple(step) for step in history], dtype=torch.float64).view(-1, 5)


def unpack_history(packed: Tensor) -> list[TrainStep]:
    """The TrainSteps that :func:`pack_history` packed."""
    return [TrainStep(int(step), *rest) for step, *rest in packed.tolist()]


def timestep_probabilities(denoiser: nn.Module, importance: float) -> Tensor:
    """How often each timestep is drawn in training, (T,) float64 summing to 1.

    A share ``importance`` of the draws follows c_t^2, the loss that the Gaussian start of denoisers.Preconditioned
    leaves at t, and the rest is uniform; without such a start all of it is. With weights 1 / (T p_t) the expected loss
    is the same for every choice, and its gradient least noisy where draws follow the loss: importance sampling as in
    Nichol and Dhariwal 2021 (arXiv 2102.09672, Sec. 3.3), with the loss known in closed form instead of tracked. Drawn
    uniformly, more than half of the timesteps would be ones at which hardly any loss is left."""
    uniform = torch.full((T,), 1 / T, dtype=torch.float64)
    c_t = getattr(denoiser, "rest", None)
    if c_t is None:
        return uniform
    loss = c_t.detach().cpu().double().square()
    return importance * loss / loss.sum() + (1 - importance) * uniform


def training_batch(
    x0: Tensor, batch_size: int, generator: torch.Generator, probabilities: Tensor | None = None,
    keep: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Draw ``(x_0, t, eps)`` for one step: images with replacement, t by ``probabilities`` (T,) or uniform, noise per
    image. All on the CPU, so that a seed means the same draws on every device. Shapes (B, C, s, s), (B,), (B, C, s, s).
    With ``keep`` (B, K), x0 holds tokens (N, tokens, D), and x_0 and eps are of these alone: (B, K, D)."""
    index = torch.randint(len(x0), (batch_size,), generator=generator)
    if probabilities is None:
        t = torch.randint(T, (batch_size,), generator=generator)
    else:
        t = torch.multinomial(probabilities, batch_size, replacement=True, generator=generator)
    batch = x0[index] if keep is None else x0[index[:, None], keep]
    return batch, t, torch.randn(batch.shape, generator=generator)


def ddpm_loss(
    denoiser: nn.Module, x0: Tensor, t: Tensor, eps: Tensor, abar: Tensor, weight: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """|eps - eps_theta(sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, t)|^2, mean over everything; each image times its
    ``weight`` (B,) if given. With ``keep`` (B, K) all is of these tokens alone of a DiT: x0 and eps (B, K, p p C)."""
    x_t = noised(x0, eps, abar[t].view(-1, *[1] * (x0.ndim - 1)))
    eps_hat = denoiser(x_t, t) if keep is None else denoiser.at(x_t, t, keep)
    error = (eps_hat.float() - eps).square().flatten(1).mean(dim=1)  # (B,)
    return (error if weight is None else weight * error).mean()


def build_optimizers(denoiser: nn.Module, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """AdamW for every parameter; or, with ``optimizer`` muon, Muon for those that the module names in
    ``hidden_matrices()`` and AdamW for the rest."""
    hidden = denoiser.hidden_matrices() if settings.optimizer == "muon" and hasattr(denoiser, "hidden_matrices") else []
    chosen = {id(weight) for weight in hidden}
    rest = [parameter for parameter in denoiser.parameters() if id(parameter) not in chosen]
    adamw = torch.optim.AdamW(rest, lr=settings.lr, weight_decay=settings.weight_decay, betas=(0.9, 0.99))
    if not hidden:
        return [adamw]
    dtype = torch.bfloat16 if computes_in_bf16(hidden[0].device) else torch.float32
    return [adamw, Muon(hidden, lr=settings.muon_lr, weight_decay=settings.weight_decay, dtype=dtype)]


def train(
    denoiser: nn.Module,
    x0: Tensor,
    settings: TrainSettings,
    seed: int,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    identity: str = "",
    accelerator: Accelerator | None = None,
) -> Iterator[TrainStep]:
    """Train ``denoiser`` on ``x0`` (N, C, s, s); yields a TrainStep for every step, in order.

    When the generator is exhausted, ``denoiser`` holds the EMA weights, on ``device``, in eval mode. With
    ``checkpoint`` (a file) the state is kept on disk every ``checkpoint_seconds``, and a later call with the same
    arguments resumes there, to the same weights as an uninterrupted run; the steps that were done before are yielded
    again, from the record. A checkpoint of other settings, another seed or another ``identity`` (say, a hash of the
    data) is ignored, as is a damaged one. With an ``accelerator`` of several processes each calls this with the same
    arguments (but its own device), computes its share of every batch, and gets the same steps. Raises ValueError on
    empty data and on a batch that the processes cannot share equally, RunError if the loss stops being finite."""
    from diffusers.optimization import get_cosine_schedule_with_warmup

    if x0.ndim != 4 or len(x0) == 0:
        raise ValueError(f"training needs feature maps of shape (N, C, s, s) with N > 0, got {tuple(x0.shape)}")
    device, settings = torch.device(device), settings.for_images(len(x0))
    index, count = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    if settings.batch_size % count:
        raise ValueError(f"batch_size {settings.batch_size} cannot be divided among {count} processes")
    own = slice(index * settings.batch_size // count, (index + 1) * settings.batch_size // count)
    precision = resolve_precision(settings.precision, device)
    generator = torch.Generator().manual_seed(seed)
    abar, probabilities = alpha_bars(device), timestep_probabilities(denoiser, settings.importance)
    weights = (1 / (T * probabilities)).to(device, torch.float32)
    denoiser.to(device).train()
    tokens = getattr(denoiser, "tokens", 1)  # a UNet has none, and takes whole maps
    kept = max(1, round(settings.token_share * tokens))
    patches = denoiser.tokens_of(x0) if kept < tokens else None
    # Scaled to the run's length: a fixed 0.999 over a few hundred steps would be the initial network.
    decay = max(0.0, 1 - 1 / max(1.0, settings.ema * settings.steps))
    ema = AveragedModel(denoiser, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    optimizers = build_optimizers(denoiser, settings)
    warmup_steps = max(1, round(settings.warmup * settings.steps))
    schedulers = [get_cosine_schedule_with_warmup(one, warmup_steps, settings.steps) for one in optimizers]
    parts = {"net": denoiser, "ema": ema, **{f"optimizer {i}": one for i, one in enumerate(optimizers)}}
    parts |= {f"schedule {i}": one for i, one in enumerate(schedulers)}
    recipe = settings.model_dump(include=set(TrainSettings.model_fields)) | {"precision": precision}
    network = {name: list(tensor.shape) for name, tensor in denoiser.state_dict().items()}
    code = f"{file_sha256(Path(__file__))} torch {torch.__version__}"
    made_from = {"recipe": recipe, "seed": seed, "identity": identity, "network": network, "code": code}
    fingerprint = json.dumps(made_from, sort_keys=True)
    done = _resume(checkpoint, fingerprint, parts, generator, device)
    if count > 1 and len(set(accelerator.gather(torch.tensor([len(done)], device=device)).tolist())) > 1:
        raise RunError("the processes found different checkpoints; they need one results folder in common")
    yield from done
    earlier_seconds = done[-1].seconds if done else 0.0
    start = saved = time.monotonic()
    for step in range(len(done) + 1, settings.steps + 1):
        keep = None
        if kept < tokens and step <= 0.9 * settings.steps:  # each image has tokens of its own
            keep = torch.rand(settings.batch_size, tokens, generator=generator).argsort(1)[:, :kept]
        draw = training_batch(x0 if keep is None else patches, settings.batch_size, generator, probabilities, keep)
        batch, t, eps, keep = (v if v is None else v[own].to(device) for v in (*draw, keep))
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = ddpm_loss(denoiser, batch, t, eps, abar, weights[t], keep)
        denoiser.zero_grad(set_to_none=True)
        loss.backward()
        loss = loss.detach() if count == 1 else _average(accelerator, denoiser, loss)
        grad_norm = nn.utils.clip_grad_norm_(denoiser.parameters(), settings.grad_clip)
        lr = schedulers[0].get_last_lr()[0]
        if not math.isfinite(loss.item()):
            raise RunError(f"the loss is {loss.item()} at step {step}; lower lr (now {settings.lr})")
        for one in (*optimizers, *schedulers):
            one.step()
        ema.update_parameters(denoiser)
        now = time.monotonic()
        done.append(TrainStep(step, loss.item(), lr, float(grad_norm), earlier_seconds + now - start))
        if checkpoint and index == 0 and (now - saved >= checkpoint_seconds or step == settings.steps):
            _keep(checkpoint, fingerprint, parts, generator, done)
            saved = time.monotonic()  # after the save: one that takes long must not be due again at once
        yield done[-1]
    denoiser.load_state_dict(ema.module.state_dict())
    denoiser.eval()


def _average(accelerator: Accelerator, denoiser: nn.Module, loss: Tensor) -> Tensor:
    """Replace the gradients by their means over the processes, in one message; returns the mean loss. They are then
    the gradient of the whole batch, so nothing of the recipe but rounding depends on the number of processes."""
    gradients = [p.grad for p in denoiser.parameters() if p.grad is not None]
    packed = torch.cat([loss.detach().view(1), *(gradient.flatten() for gradient in gradients)])
    loss, *means = accelerator.reduce(packed, "mean").split([1, *(gradient.numel() for gradient in gradients)])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
    return loss[0]


def _keep(path: Path, fingerprint: str, parts: dict[str, Any], generator: torch.Generator, done: list) -> None:
    """Everything that a resumed run needs to continue as if it had never stopped, in one file that ends in its hash."""
    state = {name: part.state_dict() for name, part in parts.items()}
    state |= {"fingerprint": fingerprint, "generator": generator.get_state(), "history": pack_history(done)}
    file = io.BytesIO()
    torch.save(state, file)
    content = file.getvalue()
    write_atomically(path, lambda temporary: temporary.write_bytes(content + hashlib.sha256(content).digest()))


def _resume(path: Path | None, fingerprint: str, parts: dict[str, Any], generator: torch.Generator, device) -> list:
    """Put the state of the checkpoint into ``parts``; the steps done so far, none where there is none to trust."""
    content = path.read_bytes() if path and path.is_file() else b""
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        return []
    state = torch.load(io.BytesIO(content[:-32]), map_location=device, weights_only=True)
    if state["fingerprint"] != fingerprint:
        return []
    for name, part in parts.items():
        part.load_state_dict(state[name])
    generator.set_state(state["generator"].cpu())
    return unpack_history(state["history"])


@torch.no_grad()
def denoising_loss(
    denoiser: Denoiser,
    x0: Tensor,
    timesteps: list[int],
    seed: int,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
) -> Tensor:
    """DDPM loss of each image of held-out ``x0`` at each of ``timesteps``, (len(timesteps), N): one noise draw for each
    image and timestep, from ``seed``. ``device`` is the denoiser's."""
    abar = alpha_bars(device)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for t in timesteps:
        eps = torch.randn(x0.shape, generator=generator)
        losses = []
        for x, e in zip(x0.split(batch_size), eps.split(batch_size), strict=True):
            x, e = x.to(device), e.to(device)
            eps_hat = denoiser(noised(x, e, abar[t]), torch.full((len(x),), t, device=device))
            losses.append(((eps_hat - e) ** 2).mean(dim=(1, 2, 3)).cpu())
        rows.append(torch.cat(losses))
    return torch.stack(rows)
