"""The inverse residual field (IRF), equation by equation.

Notation (Ho et al. 2020 [1]): abar_t = prod_{s<=t} (1 - beta_s), t an index in 0..T-1; a noised sample is
x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps; sigma_t = sqrt((1 - abar_t) / abar_t); xbar_t = x_t / sqrt(abar_t).
Shapes: x, eps and fields are (B, C, H, W); ``abar`` is the whole (T,) vector; t and s are ints; a denoiser is any
callable ``denoiser(x, t) -> eps`` with t a (B,) long tensor.

The paper (arXiv 2604.18393) was readable in its abstract only. Definition C is our reconstruction of its IRF; A, B, D,
E and F are the other readings of "inverse residual" that the abstract allows, kept side by side for the ablation.

[1] Denoising diffusion probabilistic models, arXiv 2006.11239.   [2] DDIM, arXiv 2010.02502.
[3] InvAD, arXiv 2504.05662: scoring by DDIM inversion; its official code feeds clean features at index t.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
INPUTS = ("clean", "scaled", "noised")


def sigma(abar: Tensor) -> Tensor:
    """sigma_t = sqrt((1 - abar_t) / abar_t), the noise level of xbar_t; same shape as ``abar``."""
    return ((1 - abar) / abar).sqrt()


def noised(x0: Tensor, eps: Tensor, abar_t: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, Eq. 4 of [1]; ``abar_t`` is a scalar or broadcasts against x0."""
    return abar_t.sqrt() * x0 + (1 - abar_t).sqrt() * eps


def network_input(x0: Tensor, t: int, abar: Tensor, input: str = "clean", eps: Tensor | None = None) -> Tensor:
    """What the network is shown at its one evaluation: x_0 as in [3], sqrt(abar_t) x_0, or the noised x_t.

    ``noised`` needs ``eps``, drawn by the caller for each image apart: noise shared by a sorted batch leaks the label.
    """
    if input == "clean":
        return x0
    if input == "scaled":
        return abar[t].sqrt() * x0
    if input == "noised" and eps is not None:
        return noised(x0, eps, abar[t])
    raise ValueError(f"unknown input {input!r} (known: {', '.join(INPUTS)}), or noised without its eps")


def predicted_x0(z: Tensor, eps_hat: Tensor, abar_t: Tensor) -> Tensor:
    """x_0-hat = (z - sqrt(1 - abar_t) eps_hat) / sqrt(abar_t): what the network takes its input ``z`` to be without its
    noise, Eq. 15 of [1]; shapes as in :func:`noised`."""
    return (z - (1 - abar_t).sqrt() * eps_hat) / abar_t.sqrt()


# --- one step of DDIM inversion: x_s = a x_t + b eps_theta(x_t, t), s > t ----------------------------------------


def inversion_coefficients(t: int, s: int, abar: Tensor) -> tuple[Tensor, Tensor]:
    """a = sqrt(abar_s / abar_t), b = sqrt(1 - abar_s) - a sqrt(1 - abar_t): Eq. 12 of [2] run towards the noise."""
    a = (abar[s] / abar[t]).sqrt()
    return a, (1 - abar[s]).sqrt() - a * (1 - abar[t]).sqrt()


def inversion_step(x_t: Tensor, eps_hat: Tensor, t: int, s: int, abar: Tensor) -> Tensor:
    a, b = inversion_coefficients(t, s, abar)
    return a * x_t + b * eps_hat


# --- the candidate residuals between x_t and its inversion x_s --------------------------------------------------


def residual_a(x_s: Tensor, x_t: Tensor, t: int, s: int, abar: Tensor) -> Tensor:
    """A = (x_s - a x_t) / b: equals eps_theta(x_t, t)."""
    return residual_b(x_s, x_t, t, s, abar) / inversion_coefficients(t, s, abar)[1]


def residual_b(x_s: Tensor, x_t: Tensor, t: int, s: int, abar: Tensor) -> Tensor:
    """B = x_s - a x_t: equals b eps_theta(x_t, t)."""
    return x_s - inversion_coefficients(t, s, abar)[0] * x_t


def residual_c(x_s: Tensor, x_t: Tensor, t: int, s: int, abar: Tensor) -> Tensor:
    """C = (xbar_s - xbar_t) / (sigma_s - sigma_t): the slope of the inversion path in sigma. OUR IRF.

    Equals eps_theta(x_t, t) whatever s is, hence "holds for any neighbouring time step"."""
    xbar_s, xbar_t = x_s / abar[s].sqrt(), x_t / abar[t].sqrt()
    return (xbar_s - xbar_t) / (sigma(abar[s]) - sigma(abar[t]))


def residual_d(x_s: Tensor, x_t: Tensor, t: int, s: int, abar: Tensor) -> Tensor:
    """D = x_s - x_t: the plain difference, (one Euler step of) the probability-flow drift."""
    return x_s - x_t


def residual_e(x_s: Tensor, x_t: Tensor, t: int, s: int, abar: Tensor) -> Tensor:
    """E = x_s - sqrt(abar_s / abar_t) x_t: the forward process's residual; with a deterministic x_s it is B."""
    return residual_b(x_s, x_t, t, s, abar)


def residual_f(eps_hat: Tensor, eps: Tensor) -> Tensor:
    """F = eps_theta(x_t, t) - eps: the training error; needs the noised input and its eps."""
    return eps_hat - eps


# --- the field, and the path that the invariance study needs ---------------------------------------------------


def inverse_residual_field(
    denoiser: Denoiser, x0: Tensor, t: int, abar: Tensor, input: str = "clean", eps: Tensor | None = None
) -> Tensor:
    """The one-step IRF of ``x0`` at timestep ``t``, definition C, (B, C, H, W): one evaluation of the network.
    C divides the step out again, so the field is the noise estimate itself; that C(any s) == eps_theta is a test."""
    z = network_input(x0, t, abar, input, eps)
    return denoiser(z, torch.full((z.shape[0],), t, dtype=torch.long, device=z.device))


def inversion_path(
    denoiser: Denoiser, x: Tensor, timesteps: Sequence[int], abar: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Follow DDIM inversion from ``x`` at ``timesteps[0]`` through the increasing ``timesteps``, with one evaluation
    at each; returns its ``(x_t, field_t)``."""
    path = []
    for t, s in pairwise([*timesteps, None]):
        field = inverse_residual_field(denoiser, x, t, abar)
        path.append((x, field))
        x = x if s is None else inversion_step(x, field, t, s, abar)
    return path


# --- the closed-form oracle ------------------------------------------------------------------------------------


def gaussian_optimal_eps(z: Tensor, t: int, mu: Tensor, cov: Tensor, abar: Tensor) -> Tensor:
    """eps*(z, t) = sqrt(1 - abar_t) (abar_t S + (1 - abar_t) I)^{-1} (z - sqrt(abar_t) mu): the minimum of the DDPM
    loss E|eps - f(x_t)|^2 for x_0 ~ N(mu, S). z: (n, d); mu: (d,); S = ``cov``: (d, d)."""
    noise_cov = abar[t] * cov + (1 - abar[t]) * torch.eye(len(mu), dtype=z.dtype)
    return (1 - abar[t]).sqrt() * torch.linalg.solve(noise_cov, (z - abar[t].sqrt() * mu).T).T
