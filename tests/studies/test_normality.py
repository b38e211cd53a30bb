"""The normality study passes true Gaussians and names what is wrong with others."""

import numpy as np
import pytest
from scipy import stats

from irf_lib.studies import normality


@pytest.fixture(scope="module")
def gaussian():
    """True N(0, I) fields of 20 images."""
    return np.random.default_rng(0).standard_normal((20, 16, 12, 12))


def averaged(fields):
    """Averages of 2 x 2 neighbours, of unit variance: every marginal stays N(0, 1)."""
    return sum(np.roll(fields, shift, axis=(2, 3)) for shift in ((0, 0), (0, 1), (1, 0), (1, 1))) / 2


SPOILT = {  # signatures: what is done to a Gaussian field
    (): lambda fields: fields,
    ("shifted up",): lambda fields: fields + 0.1,
    ("too wide", "far from the standard normal", "long vectors"): lambda fields: 2 * fields,
    ("heavy tails",): lambda fields: fields * np.sqrt(3 / np.random.default_rng(1).chisquare(5, fields.shape)),
    ("norms too even",): lambda fields: fields / np.linalg.norm(fields, axis=1, keepdims=True) * 4,
    ("skewed right",): lambda fields: fields + 0.5 * (fields**2 - 1),
    ("not white",): averaged,
    ("neighbours opposed",): lambda fields: (fields + 2) * (-1.0) ** np.arange(12),
    ("norms uneven",): lambda fields: fields * np.where(np.arange(144).reshape(12, 12) % 2, 0.6, 1.28),
}


@pytest.mark.parametrize("signatures", SPOILT)
def test_signatures_name_what_is_wrong(gaussian, signatures):
    judged = normality.judge(normality.all_effects(SPOILT[signatures](gaussian), seed=0))
    assert judged.verdict == ("not Gaussian" if signatures else "Gaussian")
    assert set(signatures) <= set(judged.signatures)
    if signatures in ((), ("shifted up",), ("not white",)):
        assert judged.signatures == signatures, "and nothing else"


@pytest.mark.parametrize("name", normality.LIMITS)
def test_judge(name):
    def judged(low, high):  # an interval, in units of the largest deviation
        effect = tuple(neutral + reach * end for end in (0, low, high))
        return normality.judge({name: effect, "ppcc": (0.1, 0.1, 0.1)})

    (neutral, reach), (below, above) = normality.LIMITS[name], normality.SIGNATURES[name]
    assert judged(-0.5, 0.5) == ("Gaussian", ()) and judged(-2, 2) == judged(0, 2) == ("undecided", ())
    assert judged(-3, -2) == ("not Gaussian", (below,)) and judged(2, 3) == ("not Gaussian", (above,))


@pytest.mark.parametrize("values", [lambda rng: rng.standard_normal, lambda rng: rng.standard_exponential])
def test_effects_equal_their_definitions(values):
    sample = 1.3 * values(np.random.default_rng(2))((8, 4000)) - 0.2
    found = {name: value for name, (value, _, _) in normality.marginal_effects(sample, seed=0).items()}
    ordered = np.sort(sample, axis=None)
    normal = stats.norm.ppf((np.arange(ordered.size) + 0.5) / ordered.size)
    assert found["mean"] == pytest.approx(sample.mean()) and found["sd"] == pytest.approx(sample.std())
    assert found["skew"] == pytest.approx(stats.skew(ordered), abs=1e-9)
    assert found["excess_kurtosis"] == pytest.approx(stats.kurtosis(ordered), abs=1e-9)
    assert found["w2"] == pytest.approx(np.sqrt(np.mean((ordered - normal) ** 2)), abs=0.01)
    assert found["ppcc"] == pytest.approx(np.corrcoef(ordered, normal)[0, 1], abs=1e-3)
    assert found["tail3"] == pytest.approx((abs(ordered) > 3).mean() / (2 * stats.norm.sf(3)))
    parts = found["mean"] ** 2 + (found["sd"] - 1) ** 2 + 2 * found["sd"] * (1 - found["ppcc"])
    assert found["w2"] ** 2 == pytest.approx(parts, abs=0.01), "location, scale and shape"


def test_intervals_are_over_images_not_over_values(refused):
    """Images that differ in their mean: the interval is as wide as 15 images make it, however many values they have."""
    rng = np.random.default_rng(3)
    images = rng.standard_normal((15, 1)) + 0.01 * rng.standard_normal((15, 2000))
    _, low, high = normality.marginal_effects(images, seed=0)["mean"]
    assert high - low == pytest.approx(2 * 1.96 * images.mean(axis=1).std() / np.sqrt(15), rel=0.2)
    refused("at least 2", lambda: normality.marginal_effects(np.ones((1, 4)), seed=0))


def test_squared_norms_follow_chi_square(gaussian):
    squared = normality.squared_norms(gaussian)
    assert squared.shape == (20, 144) and stats.kstest(squared[:, 0], stats.chi2(16).cdf).pvalue > 0.001
    effects = normality.norm_effects(squared, 16, seed=0)
    assert effects["norm_mean"][0] == pytest.approx(1, abs=0.05)
    assert effects["norm_dispersion"][0] == pytest.approx(1, abs=0.1)
    scaled = normality.norm_effects(9 * squared, 16, seed=0)
    assert scaled["norm_dispersion"] == pytest.approx(effects["norm_dispersion"]), "no scale moves it"


def test_radial_autocorrelation(gaussian):
    white, low, high = normality.radial_autocorrelation(gaussian, 5, seed=0)
    assert white.shape == low.shape == high.shape == (6,) and (white[0], low[0], high[0]) == pytest.approx((1, 1, 1))
    assert np.abs(white[1:]).max() < 0.02 and (low <= white).all() and (white <= high).all()
    # Averaging gives 1/2 to the four neighbours, 1/4 to the diagonal ones, which round to distance 1 as well.
    correlated = averaged(gaussian)
    blurred, low, high = normality.radial_autocorrelation(correlated, 5, seed=0)
    assert blurred[1] == pytest.approx(0.375, abs=0.03)
    # Images of very different contrast have the same correlation, and the interval must not mind the contrast.
    contrast = np.exp(np.random.default_rng(7).standard_normal((20, 1, 1, 1)))
    _, wide_low, wide_high = normality.radial_autocorrelation(contrast * correlated, 5, seed=0)
    assert wide_high[1] - wide_low[1] < 5 * (high[1] - low[1])
    # No wrap-around: a ramp's two ends are unlike each other.
    ramp = np.linspace(-1, 1, 12)[None, None, None, :] * np.ones((2, 1, 12, 1))
    assert normality.radial_autocorrelation(ramp, 11, seed=0)[0][11] < 0


def test_qq_bands(gaussian):
    values = gaussian.reshape(20, -1)
    curve = normality.qq_curve(values, stats.norm, seed=0)
    assert curve.observed.between(curve.null_low, curve.null_high).all()
    assert (curve.low <= curve.observed).all() and (curve.observed <= curve.high).all()
    heavy = normality.qq_curve(np.random.default_rng(5).standard_t(4, values.shape), stats.norm, seed=0)
    assert heavy.observed.iloc[-1] > heavy.null_high.iloc[-1] and heavy.observed.iloc[0] < heavy.null_low.iloc[0]
