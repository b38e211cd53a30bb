"""The field against diffusers, against algebra, and against the closed-form Gaussian oracle."""

import math

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDPMScheduler
from scipy import stats

from irf_lib import irf
from irf_lib.diffusion import T, alpha_bars
from irf_lib.scoring import FullGaussian, StandardNormal

ABAR = alpha_bars(dtype=torch.float64)
LINEAR = {"num_train_timesteps": T, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def linear_denoiser(x, t):
    """Any function of (x, t) will do as a network."""
    return torch.tanh(x + t.view(-1, 1, 1, 1) / 500)


def sample(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_forward_process_equals_diffusers(t):
    x0, eps = sample(2, 3, 4, 4).float(), sample(2, 3, 4, 4, seed=1).float()
    expected = DDPMScheduler(**LINEAR).add_noise(x0, eps, torch.tensor([t, t]))
    assert torch.allclose(irf.noised(x0, eps, alpha_bars()[t]), expected, atol=1e-6)
    assert torch.allclose(irf.network_input(x0, t, alpha_bars(), "noised", eps), expected, atol=1e-6)


@pytest.mark.parametrize(("t", "s"), [(0, 100), (100, 200), (500, 600), (800, 900)])
def test_inversion_step_equals_diffusers(t, s):
    scheduler = DDIMInverseScheduler(**LINEAR, clip_sample=False)
    scheduler.set_timesteps(10)  # steps of 100; diffusers names a step by where it goes
    x, eps = sample(2, 3, 4, 4).float(), sample(2, 3, 4, 4, seed=1).float()
    expected = scheduler.step(eps, s, x).prev_sample
    assert torch.allclose(irf.inversion_step(x, eps, t, s, alpha_bars()), expected, atol=1e-5)


@pytest.mark.parametrize(("t", "s"), [(0, 1), (10, 11), (200, 201), (200, 999), (998, 999)])
def test_residuals_are_the_noise_estimate(t, s):
    x, eps_hat = sample(2, 3, 4, 4), sample(2, 3, 4, 4, seed=1)
    x_s = irf.inversion_step(x, eps_hat, t, s, ABAR)
    _, b = irf.inversion_coefficients(t, s, ABAR)
    assert torch.allclose(irf.residual_a(x_s, x, t, s, ABAR), eps_hat, atol=1e-8)
    assert torch.allclose(irf.residual_b(x_s, x, t, s, ABAR), b * eps_hat, atol=1e-8)
    assert torch.allclose(irf.residual_c(x_s, x, t, s, ABAR), eps_hat, atol=1e-8)
    assert not torch.allclose(irf.residual_d(x_s, x, t, s, ABAR), b * eps_hat, atol=1e-8)
    field = irf.inverse_residual_field(linear_denoiser, x, t, ABAR)
    x_s = irf.inversion_step(x, field, t, s, ABAR)
    assert torch.allclose(irf.residual_c(x_s, x, t, s, ABAR), field, atol=1e-8), "the field is C towards every later s"


def test_forward_residual_e_is_scaled_noise():
    x0, eps, fresh = (sample(2, 3, 4, 4, seed=i) for i in range(3))
    x_t = irf.noised(x0, eps, ABAR[100])
    alpha = ABAR[101] / ABAR[100]
    x_next = alpha.sqrt() * x_t + (1 - alpha).sqrt() * fresh
    assert torch.allclose(irf.residual_e(x_next, x_t, 100, 101, ABAR), (1 - alpha).sqrt() * fresh)


def test_shared_noise_path_is_straight():
    # Along x_t = sqrt(abar) x0 + sqrt(1 - abar) eps with one eps, C is eps between any pair.
    x0, eps = sample(2, 3, 4, 4), sample(2, 3, 4, 4, seed=1)
    for t, s in [(1, 2), (50, 700), (700, 50)]:
        x_t, x_s = irf.noised(x0, eps, ABAR[t]), irf.noised(x0, eps, ABAR[s])
        assert torch.allclose(irf.residual_c(x_s, x_t, t, s, ABAR), eps, atol=1e-8)
    assert torch.equal(irf.residual_f(eps, eps), torch.zeros_like(eps))


def test_inputs(refused):
    x0 = sample(2, 3, 4, 4)
    assert irf.network_input(x0, 300, ABAR) is x0
    assert torch.equal(irf.network_input(x0, 300, ABAR, "scaled"), ABAR[300].sqrt() * x0)
    for wrong in ("noised", "dirty"):
        refused("or noised without its eps", irf.network_input, x0, 300, ABAR, wrong, kind=ValueError)


@pytest.fixture(scope="module")
def gaussian_world():
    d = 6
    basis = torch.linalg.qr(sample(d, d))[0]
    cov = basis @ torch.diag(torch.logspace(0.5, -1.5, d, dtype=torch.float64)) @ basis.T
    mu = torch.linspace(-1, 1, d, dtype=torch.float64)
    return mu, cov, mu + sample(20000, d, seed=3) @ torch.linalg.cholesky(cov).T


@pytest.mark.parametrize("t", [5, 200, 900])
def test_oracle_minimises_the_ddpm_loss(gaussian_world, t):
    mu, cov, x0 = gaussian_world
    eps = sample(*x0.shape, seed=4)
    x_t = irf.noised(x0, eps, ABAR[t])
    best = irf.gaussian_optimal_eps(x_t, t, mu, cov, ABAR)
    # The residual of the best estimate is uncorrelated with every affine function of its input ...
    assert ((eps - best).T @ x_t / len(x_t)).abs().max() < 0.04
    # ... and the loss is the closed-form one.
    noise_cov = ABAR[t] * cov + (1 - ABAR[t]) * torch.eye(6)
    expected = 1 - float((1 - ABAR[t]) / 6 * torch.linalg.inv(noise_cov).trace())
    assert float(((eps - best) ** 2).mean()) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("input", ["clean", "scaled"])
def test_full_covariance_score_does_not_depend_on_t(gaussian_world, input):
    mu, cov, x0 = gaussian_world
    centred = x0[:300] - x0[300:].mean(dim=0)
    mahalanobis = 0.5 * (centred @ torch.linalg.inv(torch.cov(x0[300:].T)) * centred).sum(dim=1)

    def score(t, density):
        z = irf.network_input(x0, t, ABAR, input)
        field = irf.gaussian_optimal_eps(z, t, mu, cov, ABAR)[:, :, None, None]
        return density.fit(field[300:], shrinkage=0.0).nll(field[:300]).flatten()

    reference = score(500, FullGaussian)
    assert stats.spearmanr(reference, mahalanobis).statistic > 0.999
    for t in (1, 50, 900):
        difference = score(t, FullGaussian) - reference
        assert float(difference.std()) < 1e-6 * float(reference.std()), "equal up to a constant: log |S| moves with t"
    # The claim is not a tautology: under N(0, I) the same fields rank differently at different t.
    assert stats.spearmanr(score(1, StandardNormal), score(900, StandardNormal)).statistic < 0.9


@pytest.mark.parametrize("t", [5, 200, 900])
def test_under_the_standard_normal_t_is_a_ridge(gaussian_world, t):
    """The N(0, I) score weighs eigendirection i by (1 - abar) / (abar s_i + 1 - abar)^2, that is (s_i + sigma^2)^-2."""
    mu, cov, x0 = gaussian_world
    s, basis = torch.linalg.eigh(cov)
    own_axes = (x0[:50] - ABAR[t].sqrt() * mu) @ basis
    weight = (1 - ABAR[t]) / (ABAR[t] * s + 1 - ABAR[t]) ** 2
    field = irf.gaussian_optimal_eps(x0[:50], t, mu, cov, ABAR)[:, :, None, None]
    score = StandardNormal().nll(field).flatten() - len(mu) * math.log(2 * math.pi) / 2
    assert torch.allclose(score, 0.5 * (weight * own_axes**2).sum(dim=1))
    assert torch.allclose(weight, irf.sigma(ABAR[t]) ** 2 / ABAR[t] / (s + irf.sigma(ABAR[t]) ** 2) ** 2)
