"""The DDPM: noise schedule, denoisers behind one call, and training as a generator.

Contract for every denoiser: ``denoiser(x, t) -> eps``, x and eps (B, C, s, s) float, t (B,) long in 0..T-1.
The objective is the simple DDPM loss (Ho et al. 2020, arXiv 2006.11239, Eq. 14): plain MSE on eps, mean over uniform t,
unconditional. Schedule and networks are diffusers'.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .irf import noised
from .scoring import location_vectors
from .storage import StorageError, file_sha256, load_tensors, one_line, save_tensors

T = 1000
Denoiser = Callable[[Tensor, Tensor], Tensor]


def ddpm_scheduler() -> DDPMScheduler:
    """diffusers' scheduler of the published setting: T = 1000, linear beta 1e-4..0.02, eps-prediction, no clipping."""
    return DDPMScheduler(
        num_train_timesteps=T, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False
    )


def alpha_bars(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """abar_t for t = 0..T-1, shape (T,), computed by diffusers in float32."""
    return ddpm_scheduler().alphas_cumprod.to(device=device, dtype=dtype)


def resolve_device(name: str = "auto") -> torch.device:
    """``auto`` takes cuda, then mps, then cpu. Raises ValueError for a device that is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available.get(name.split(":")[0], False):
        there = ", ".join(kind for kind, there in available.items() if there)
        raise ValueError(f"device {name!r} is not available here; use one of: auto, {there}")
    return torch.device(name)


# --- denoisers ---------------------------------------------------------------------------------------------------


class DiT(nn.Module):
    """diffusers' DiT: every ``patch`` x ``patch`` block of locations is a token. (B, C, s, s), (B,) -> (B, C, s, s)."""

    def __init__(self, channels: int, size: int, width: int, depth: int, patch: int = 1):
        super().__init__()
        if width % 64:
            raise ValueError(f"the DiT's width must be a multiple of its head size 64, got {width}")
        if size % patch:
            raise ValueError(f"the DiT's patch_size must divide feature_size, got {patch} and {size}")
        self.net = DiTTransformer2DModel(
            num_attention_heads=width // 64,
            attention_head_dim=64,
            in_channels=channels,
            num_layers=depth,
            sample_size=size,
            patch_size=patch,
            num_embeds_ada_norm=1,  # one class, always 0: the model is unconditional
        )
        for block in self.net.transformer_blocks:
            # diffusers drops a tenth of the labels in training, from the global random state: a second "class" that
            # scoring never sees, and a source of randomness outside our generator.
            block.norm1.emb.class_embedder.dropout_prob = 0.0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, timestep=t, class_labels=torch.zeros_like(t)).sample

    @property
    def last_layer(self) -> nn.Module:
        return self.net.proj_out_2

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The weights of attention and feed-forward layers: what Muon is for. Not the modulations and the two ends."""
        layers = (
            m for block in self.net.transformer_blocks for part in (block.attn1, block.ff) for m in part.modules()
        )
        return [layer.weight for layer in layers if isinstance(layer, nn.Linear)]


class UNet(nn.Module):
    """diffusers' UNet: ``depth`` resolutions, attention at the coarsest. Same contract as :class:`DiT`; no patches."""

    def __init__(self, channels: int, size: int, width: int, depth: int, patch: int = 1):
        super().__init__()
        if width % 8 or size % 2 ** (depth - 1):
            raise ValueError(
                "the UNet's width must be a multiple of 8, and depth - 1 halvings must divide feature_size, "
                f"got width {width}, depth {depth} and feature_size {size}"
            )
        self.net = UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=2,
            block_out_channels=tuple(width * min(i + 1, 2) for i in range(depth)),
            down_block_types=("DownBlock2D",) * (depth - 1) + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (depth - 1),
            norm_num_groups=8,
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, t).sample

    @property
    def last_layer(self) -> nn.Module:
        return self.net.conv_out

    def hidden_matrices(self) -> list[nn.Parameter]:
        """None: a UNet is nearly all convolutions."""
        return []


class Preconditioned(nn.Module):
    """A denoiser that starts at the closed-form optimum of a Gaussian and learns only the rest.

        eps_theta(x, t) = sqrt(1 - abar_t) (abar_t S + (1 - abar_t) I)^{-1} (x - sqrt(abar_t) mu) + c_t F(x, t)

    at every location, with mu and S the mean and covariance of the C-vectors of the training features, and c_t the
    root-mean-square error that the Gaussian optimum leaves, so that F has targets of unit size at every t (the idea of
    EDM's preconditioning, Karras et al. 2022, arXiv 2206.00364, with a Gaussian in place of a scalar). F's last layer
    starts at zero: before training this *is* the Gaussian optimum, whose full-covariance score is (up to shrinkage) the
    Mahalanobis distance of the features, the same at every t. So what an untrained one detects is no merit of the
    diffusion model, and every table has it as a row of its own. The loss stays the plain DDPM loss on eps.
    """

    def __init__(self, net: DiT | UNet | None, channels: int):
        super().__init__()
        self.net = net  # None: the Gaussian optimum alone
        if net is not None:
            nn.init.zeros_(net.last_layer.weight)
            nn.init.zeros_(net.last_layer.bias)
        self.register_buffer("mu", torch.zeros(channels))
        self.register_buffer("basis", torch.eye(channels))  # eigenvectors of S, in columns
        self.register_buffer("gain", torch.zeros(T, channels))  # sqrt(1 - abar_t) / (abar_t s_i + 1 - abar_t)
        self.register_buffer("rest", torch.ones(T))  # c_t
        self.register_buffer("root_abar", alpha_bars().sqrt())

    def fit_gaussian(self, x0: Tensor) -> None:
        """Take mu and S from training features (N, C, s, s)."""
        vectors = location_vectors(x0).double()
        s, basis = torch.linalg.eigh(torch.cov(vectors.T))
        abar = alpha_bars(dtype=torch.float64)[:, None]  # (T, 1)
        noise_var = abar * s.clamp_min(0) + (1 - abar)  # (T, C)
        error = 1 - ((1 - abar) / noise_var).mean(dim=1)  # (T,) mean squared, between 0 and 1
        self.mu.copy_(vectors.mean(dim=0))
        self.basis.copy_(basis)
        self.gain.copy_((1 - abar).sqrt() / noise_var)
        self.rest.copy_(error.clamp_min(1e-6).sqrt())

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Those of its network."""
        return [] if self.net is None else self.net.hidden_matrices()

    def gaussian(self, x: Tensor, t: Tensor) -> Tensor:
        """The first term alone: the Gaussian optimum at every location, with no network in it."""
        with torch.autocast(x.device.type, enabled=False):  # a small matrix product that bf16 would make coarse
            centred = x.float() - self.root_abar[t].view(-1, 1, 1, 1) * self.mu.view(1, -1, 1, 1)
            rotated = torch.einsum("bchw,ck->bkhw", centred, self.basis) * self.gain[t][:, :, None, None]
            return torch.einsum("bkhw,ck->bchw", rotated, self.basis)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        gaussian = self.gaussian(x, t)
        return gaussian if self.net is None else gaussian + self.rest[t].view(-1, 1, 1, 1) * self.net(x, t)


def gaussian_optimum(x0: Tensor, device: torch.device | str = "cpu") -> Denoiser:
    """The best denoiser for a Gaussian with the mean and covariance of ``x0`` (N, C, s, s), location by location.

    What a :class:`Preconditioned` network is before training: the rival that training has to beat.
    """
    model = Preconditioned(None, x0.shape[1])
    model.fit_gaussian(x0)
    return model.to(device)


DENOISERS: dict[str, Callable[..., nn.Module]] = {"dit": DiT, "unet": UNet}


def build_denoiser(kind: str, channels: int, size: int, width: int, depth: int, seed: int, patch: int = 1) -> nn.Module:
    """A denoiser with weights drawn from ``seed`` alone; the caller's global random state is left as it was.

    Raises ValueError for an unknown kind, and for sizes that the kind cannot have.
    """
    if kind not in DENOISERS:
        raise ValueError(f"unknown denoiser {kind!r}; known: {', '.join(DENOISERS)}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DENOISERS[kind](channels, size, width, depth, patch)


# --- training ----------------------------------------------------------------------------------------------------


class TrainSettings(BaseModel):
    """How the denoiser is trained; unknown names and wrong types are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(600, ge=1)  # optimiser steps
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
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 autocast where the device computes in it

    @property
    def ema_decay(self) -> float:
        """Scaled to the run's length: a fixed 0.999 over a few hundred steps would be the initial network."""
        return max(0.0, 1 - 1 / max(1.0, self.ema * self.steps))

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
    """(len(history), 5) float64, for a file; :func:`unpack_history` is its inverse."""
    return torch.tensor([astuple(step) for step in history], dtype=torch.float64).view(-1, 5)


def unpack_history(packed: Tensor) -> list[TrainStep]:
    """The TrainSteps that :func:`pack_history` packed."""
    return [TrainStep(int(step), *rest) for step, *rest in packed.tolist()]


def computes_in_bf16(device: torch.device | str) -> bool:
    """Whether bf16 is native to the device, and no emulation that costs more than fp32.

    A CPU needs AVX512_BF16, and torch must be allowed to use it: ATEN_CPU_CAPABILITY=avx2 makes any CPU an AVX2 one.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        return torch.cpu._is_avx512_bf16_supported() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return False


def resolve_precision(precision: str, device: torch.device | str) -> str:
    """``auto`` -> bf16 where the device computes in it natively, else fp32.

    A device that does not compute in bf16 takes fp32 in its place, and a warning says so.
    """
    native = computes_in_bf16(device)
    if precision == "bf16" and not native:
        warnings.warn(f"{torch.device(device).type} does not compute in bf16 here; fp32 takes its place.", stacklevel=1)
    return "bf16" if native and precision != "fp32" else "fp32"


def timestep_probabilities(denoiser: nn.Module, importance: float) -> Tensor:
    """How often each timestep is drawn in training, (T,) float64 summing to 1.

    A share ``importance`` of the draws follows c_t^2, the loss that a :class:`Preconditioned` network's Gaussian start
    leaves at t, and the rest is uniform; without such a start all of it is. With weights 1 / (T p_t) the expected loss
    is the same for every choice, and its gradient least noisy where draws follow the loss: importance sampling as in
    Nichol and Dhariwal 2021 (arXiv 2102.09672, Sec. 3.3), with the loss known in closed form instead of tracked. Drawn
    uniformly, more than half of the timesteps would be ones at which hardly any loss is left.
    """
    uniform = torch.full((T,), 1 / T, dtype=torch.float64)
    if not isinstance(denoiser, Preconditioned):
        return uniform
    loss = denoiser.rest.detach().cpu().double().square()
    return importance * loss / loss.sum() + (1 - importance) * uniform


def training_batch(
    x0: Tensor, batch_size: int, generator: torch.Generator, probabilities: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw ``(x_0, t, eps)`` for one step: images with replacement, t by ``probabilities`` (T,) or uniform, noise per
    image. All on the CPU, so that a seed means the same draws on every device. Shapes (B, C, s, s), (B,), (B, C, s, s).
    """
    index = torch.randint(len(x0), (batch_size,), generator=generator)
    if probabilities is None:
        t = torch.randint(T, (batch_size,), generator=generator)
    else:
        t = torch.multinomial(probabilities, batch_size, replacement=True, generator=generator)
    eps = torch.randn((batch_size, *x0.shape[1:]), generator=generator)
    return x0[index], t, eps


def ddpm_loss(
    denoiser: nn.Module, x0: Tensor, t: Tensor, eps: Tensor, abar: Tensor, weight: Tensor | None = None
) -> Tensor:
    """|eps - eps_theta(sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, t)|^2, mean over everything; each image times its
    ``weight`` (B,) if given."""
    x_t = noised(x0, eps, abar[t].view(-1, 1, 1, 1))
    error = (denoiser(x_t, t).float() - eps).square().mean(dim=(1, 2, 3))  # (B,)
    return (error if weight is None else weight * error).mean()


class Muon(torch.optim.Optimizer):
    """:class:`torch.optim.Muon`, whose orthogonalisation runs in ``dtype``; with bf16 the two are equal bit for bit.

    Torch's own is in bf16 everywhere, and a CPU that emulates bf16 is thirty times slower in it than in fp32. Every
    parameter is a matrix (m, n). Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """

    def __init__(
        self, params, lr: float, weight_decay: float = 0.1, momentum: float = 0.95, dtype: torch.dtype = torch.bfloat16
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype  # in no group: a checkpoint must not carry it to another device

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One Nesterov step with decoupled weight decay."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                buffer = state["momentum_buffer"]
                buffer.lerp_(parameter.grad, 1 - momentum)
                update = orthogonalised(parameter.grad.lerp(buffer, momentum).to(self.dtype))
                parameter.mul_(1 - lr * group["weight_decay"])
                rows, columns = parameter.shape
                parameter.add_(update, alpha=-lr * math.sqrt(max(1, rows / columns)))


def orthogonalised(matrix: Tensor) -> Tensor:
    """Nearly U V^T of the singular value decomposition U S V^T of ``matrix`` (m, n), in its dtype.

    Five steps of a quintic Newton-Schulz iteration, with torch's coefficients: they push all singular values near 1.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if tall else x


def build_optimizers(denoiser: nn.Module, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """AdamW for every parameter; or, with ``optimizer`` muon, Muon for the hidden matrices and AdamW for the rest.

    Muon makes each update of a matrix orthogonal (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural
    networks"; Liu et al. 2025, arXiv 2502.16982), in the precision that the device computes in. Any module with
    ``hidden_matrices()`` gets it.
    """
    hidden = denoiser.hidden_matrices() if settings.optimizer == "muon" and hasattr(denoiser, "hidden_matrices") else []
    chosen = {id(weight) for weight in hidden}
    rest = [parameter for parameter in denoiser.parameters() if id(parameter) not in chosen]
    adamw = torch.optim.AdamW(rest, lr=settings.lr, weight_decay=settings.weight_decay, betas=(0.9, 0.99))
    if not hidden:
        return [adamw]
    dtype = torch.bfloat16 if computes_in_bf16(hidden[0].device) else torch.float32
    return [adamw, Muon(hidden, lr=settings.muon_lr, weight_decay=settings.weight_decay, dtype=dtype)]


class Processes:
    """The processes that train one network together. This one is alone; a subclass joins several.

    Each computes the gradient of its own slice of every batch; averaged, these are the gradient of the whole batch, and
    every process makes the same optimiser step. So nothing of the recipe depends on how many there are, but rounding.
    """

    index: int = 0  # this process's place, 0 is the main one: it alone writes files
    count: int = 1

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def share(self, batch_size: int) -> slice:
        """This process's images of a batch. Raises ValueError unless all get equally many: only then is the mean of
        their losses that of the batch."""
        if batch_size % self.count:
            raise ValueError(f"batch_size {batch_size} cannot be divided among {self.count} processes")
        size = batch_size // self.count
        return slice(self.index * size, (self.index + 1) * size)

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean over the processes, element by element. All of them must call it, with tensors of one shape."""
        return tensor

    def main_first(self) -> AbstractContextManager:
        """A context that the others enter when the main process has left it."""
        return nullcontext()


ALONE = Processes()


def _average(processes: Processes, denoiser: nn.Module, loss: Tensor) -> Tensor:
    """Replace the gradients by their means over ``processes``; returns the mean loss."""
    if processes.count == 1:
        return loss
    gradients = [p.grad for p in denoiser.parameters() if p.grad is not None]
    # One message a step. DistributedDataParallel would send while it still computes, but wraps the network: its
    # average, its checkpoint and its hidden matrices would have to know.
    packed = processes.mean(torch.cat([loss.detach().view(1), *(gradient.flatten() for gradient in gradients)]))
    loss, *means = packed.split([1, *(gradient.numel() for gradient in gradients)])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
    return loss[0]


def _require_same(processes: Processes, number: int, device: torch.device) -> None:
    """Raise RuntimeError, in every process, if ``number`` differs between them."""
    if processes.count > 1:
        own = torch.tensor([float(number)], dtype=torch.float64, device=device)
        if processes.mean((own - processes.mean(own)) ** 2) > 1e-3:
            raise RuntimeError("the processes found different checkpoints; they need one results folder in common")


def train(
    denoiser: nn.Module,
    x0: Tensor,
    settings: TrainSettings,
    seed: int,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    identity: str = "",
    processes: Processes = ALONE,
) -> Iterator[TrainStep]:
    """Train ``denoiser`` on ``x0`` (N, C, s, s); yields a TrainStep for every step, in order.

    When the generator is exhausted, ``denoiser`` holds the EMA weights, on ``device``, in eval mode. With
    ``checkpoint`` (a JSON path) the state is kept on disk every ``checkpoint_seconds`` and a later call with the same
    arguments goes on from there, to the same weights as an uninterrupted run (the steps that were done before are
    yielded again, from the record); a checkpoint of other settings, another seed or another ``identity`` (say, a hash
    of the data) is ignored, as is a damaged one. With several ``processes`` each calls this with the same arguments
    (but its own device) and gets the same steps; the main one keeps the checkpoint. Raises ValueError on empty data and
    on a batch that the processes cannot divide, FloatingPointError if the loss stops being finite, and StorageError
    where a checkpoint cannot be written (an earlier one is then kept).
    """
    if x0.ndim != 4 or len(x0) == 0:
        raise ValueError(f"training needs feature maps of shape (N, C, s, s) with N > 0, got {tuple(x0.shape)}")
    device, settings = torch.device(device), settings.for_images(len(x0))
    own = processes.share(settings.batch_size)
    precision = resolve_precision(settings.precision, device)
    generator = torch.Generator().manual_seed(seed)
    abar, probabilities = alpha_bars(device), timestep_probabilities(denoiser, settings.importance)
    weights = (1 / (T * probabilities)).to(device, torch.float32)
    denoiser.to(device).train()
    ema = AveragedModel(denoiser, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay), use_buffers=True)
    optimizers = build_optimizers(denoiser, settings)
    warmup_steps = max(1, round(settings.warmup * settings.steps))
    schedulers = [get_cosine_schedule_with_warmup(one, warmup_steps, settings.steps) for one in optimizers]
    state = _TrainState(denoiser, ema, optimizers, schedulers, generator)
    recipe = settings.model_dump(include=set(TrainSettings.model_fields)) | {"precision": precision}
    network = {name: list(tensor.shape) for name, tensor in denoiser.state_dict().items()}
    code = f"{file_sha256(Path(__file__))} torch {torch.__version__}"
    fingerprint = {"recipe": recipe, "seed": seed, "identity": identity, "network": network, "code": code}
    done = state.load(checkpoint, fingerprint)
    _require_same(processes, len(done), device)
    yield from done
    earlier_seconds = done[-1].seconds if done else 0.0
    start = saved = time.monotonic()
    for step in range(len(done) + 1, settings.steps + 1):
        draw = training_batch(x0, settings.batch_size, generator, probabilities)
        batch, t, eps = (v[own].to(device) for v in draw)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = ddpm_loss(denoiser, batch, t, eps, abar, weights[t])
        denoiser.zero_grad(set_to_none=True)
        loss.backward()
        loss = _average(processes, denoiser, loss)
        grad_norm = nn.utils.clip_grad_norm_(denoiser.parameters(), settings.grad_clip)
        lr = schedulers[0].get_last_lr()[0]
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}; lower lr (now {settings.lr})")
        for one in (*optimizers, *schedulers):
            one.step()
        ema.update_parameters(denoiser)
        now = time.monotonic()
        done.append(TrainStep(step, loss.item(), lr, float(grad_norm), earlier_seconds + now - start))
        if checkpoint and processes.is_main and (now - saved >= checkpoint_seconds or step == settings.steps):
            state.save(checkpoint, fingerprint, done)
            saved = time.monotonic()  # after the save: one that takes long must not be due again at once
        yield done[-1]
    denoiser.load_state_dict(ema.module.state_dict())
    denoiser.eval()


class _TrainState:
    """Everything a resumed run needs to go on as if it had never stopped."""

    def __init__(self, denoiser, ema, optimizers, schedulers, generator):
        self.denoiser, self.ema, self.optimizers = denoiser, ema, optimizers
        self.schedulers, self.generator = schedulers, generator

    def save(self, path: Path, fingerprint: dict, done: list[TrainStep]) -> None:
        tensors = {f"net.{k}": v for k, v in self.denoiser.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for n, optimizer in enumerate(self.optimizers):
            for i, slots in optimizer.state_dict()["state"].items():
                tensors |= {f"opt.{n}.{i}.{k}": v for k, v in slots.items()}
        tensors |= {"generator": self.generator.get_state(), "history": pack_history(done)}
        save_tensors(path, tensors, {"fingerprint": fingerprint})

    def load(self, path: Path | None, fingerprint: dict) -> list[TrainStep]:
        """The steps done so far: none where there is no checkpoint of ours to trust."""
        if path is None:
            return []
        try:
            tensors, meta = load_tensors(path)
        except StorageError:
            return []
        if meta.get("fingerprint") != fingerprint:
            return []
        try:
            return self._restore(tensors)
        except (KeyError, ValueError, RuntimeError, TypeError) as error:  # by somebody's hand: half of it may be in
            raise StorageError(
                f"{path} is no whole checkpoint ({one_line(error)}); delete it and start again."
            ) from None

    def _restore(self, tensors: dict[str, Tensor]) -> list[TrainStep]:
        done = unpack_history(tensors["history"])
        part = {name: {} for name in ("net", "ema", "opt")}
        for key, tensor in tensors.items():
            head, _, rest = key.partition(".")
            if head in part:
                part[head][rest] = tensor
        self.denoiser.load_state_dict(part["net"])
        self.ema.load_state_dict(part["ema"])
        for n, (optimizer, scheduler) in enumerate(zip(self.optimizers, self.schedulers, strict=True)):
            slots = optimizer.state_dict()
            for key, tensor in part["opt"].items():
                which, i, slot = key.split(".", 2)
                if int(which) == n:
                    slots["state"].setdefault(int(i), {})[slot] = tensor
            optimizer.load_state_dict(slots)
            # The schedule is a pure function of the step count, so it is replayed rather than stored.
            scheduler.load_state_dict(scheduler.state_dict() | {"last_epoch": len(done)})
            for group, lr_lambda, base in zip(
                optimizer.param_groups, scheduler.lr_lambdas, scheduler.base_lrs, strict=True
            ):
                group["lr"] = base * lr_lambda(len(done))
            scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
        self.generator.set_state(tensors["generator"])
        return done


@torch.no_grad()
def denoising_loss(
    denoiser: Denoiser,
    x0: Tensor,
    timesteps: list[int],
    seed: int,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
) -> Tensor:
    """Per-image DDPM loss of held-out ``x0`` at each of ``timesteps``; returns (len(timesteps), N).

    One noise draw for each image and timestep, from ``seed``; ``device`` is the denoiser's.
    """
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
