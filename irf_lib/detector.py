"""OneStepDetector: from a folder of good parts to a verdict. The one path that notebooks and runner use.

detector = OneStepDetector(DetectorSettings()).fit(good_images)
result = detector.score(new_images)          # .scores .maps .p_values .flagged
detector.save(folder);  OneStepDetector.load(folder)
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from tqdm.auto import tqdm

from .diffusion import (
    ALONE,
    DENOISERS,
    Denoiser,
    Preconditioned,
    Processes,
    T,
    TrainSettings,
    TrainStep,
    alpha_bars,
    build_denoiser,
    gaussian_optimum,
    pack_history,
    resolve_device,
    train,
    unpack_history,
)
from .feature_store import FeatureStore
from .features import BackboneError, build_backbone, channel_statistics
from .folding import fold
from .irf import inverse_residual_field, network_input, predicted_x0
from .scorer import Scorer, batch_size
from .scoring import DENSITIES, Density, anomaly_map, conformal_p_values, conformal_threshold, image_score
from .storage import StorageError, load_tensors, one_line, save_tensors

FORMAT = 1


class DetectorSettings(TrainSettings):
    """Everything that a detector depends on, besides its images and its seed."""

    backbone: Literal["efficientnet-lite0", "efficientnet-b4", "dinov2-small", "rgb"] = "efficientnet-lite0"
    backbone_weights: str | None = None  # a local file or folder, or a hub name; None: the backbone's own
    image_size: int = Field(256, ge=32, le=8192)  # pixels
    feature_size: int = Field(32, ge=4, le=512)  # locations a side
    denoiser: Literal["dit", "unet"] = "dit"
    patch_size: int = Field(2, ge=1)  # locations a side of one of the DiT's tokens; a UNet has none
    width: int = Field(256, ge=8, le=8192)
    depth: int = Field(4, ge=1, le=128)
    precondition: bool = True  # start the denoiser at the Gaussian optimum of the training features
    t: int = Field(200, ge=0, lt=T)  # the timestep of the one evaluation
    input: Literal["clean", "scaled", "noised"] = "scaled"
    density: Literal["standard", "diagonal", "full", "location", "local"] = "full"
    image_score: str = "top10"
    alpha: float = Field(0.05, ge=1e-4, lt=1)  # false-alarm rate on normal images
    calibration: float = Field(0.1, gt=0, lt=1)  # share of the normal images held out; at least 20 where there are 60

    @model_validator(mode="after")
    def _network_can_be_built(self) -> Self:
        with torch.device("meta"):  # only the shapes: no memory, no random numbers
            DENOISERS[self.denoiser](8, self.feature_size, self.width, self.depth, self.patch_size)
        return self

    @field_validator("image_score")
    @classmethod
    def _known_rule(cls, rule: str) -> str:
        image_score(torch.zeros(1, 2, 2), rule)  # raises ValueError, which pydantic reports with the field's name
        return rule


SCORING_FIELDS = ("t", "input", "density", "image_score", "alpha")


@dataclass(frozen=True)
class Scores:
    """What a detector says of N images."""

    scores: np.ndarray  # (N,) float64, nats, high = anomalous
    maps: np.ndarray  # (N, image_size, image_size) float32, nats
    p_values: np.ndarray  # (N,) in (0, 1], conformal, valid for one normal image
    flagged: np.ndarray  # (N,) bool, p <= alpha


def calibration_split(n: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images to fit on and of those held out for the threshold, both sorted; disjoint, covering 0..n-1.

    The held-out part is ``share`` of them but at least 20 (the fewest that can promise a 5 % false-alarm rate is 19),
    and never more than a third. Raises ValueError for fewer than 3 images.
    """
    if n < 3:
        raise ValueError(f"fitting needs at least 3 normal images, got {n}; add some")
    held_out = _held_out(n, share)
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _held_out(n: int, share: float) -> int:
    return min(max(round(share * n), 20), n // 3)


def images_needed(alpha: float, share: float) -> tuple[int, int]:
    """(held-out images that a false-alarm rate of ``alpha`` needs, images in all whose split holds out so many).

    No threshold from n held-out images can promise less than 1 / (n + 1).
    """
    needed = math.ceil(1 / alpha - 1 - 1e-9)
    start = 3 * needed if needed <= 20 else max(3 * needed, math.floor((needed - 1) / share))
    return needed, next(n for n in itertools.count(start) if _held_out(n, share) >= needed)


def checked_images(images: Sequence[Path] | np.ndarray) -> list[Path] | np.ndarray:
    """``images`` as a list of paths, or as the array (N, 3, H, W) in [0, 1] that they are.

    Raises ValueError for another shape, type or range: an image in 0..255 would be scored, and be a defect.
    """
    if isinstance(images, np.ndarray):
        said = f"images must be an array (N, 3, H, W) of floats in [0, 1], got {images.dtype} of shape {images.shape}"
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"{said}; repeat a grey channel three times, and put channels before height and width")
        if min(images.shape[2:]) < 32:
            raise ValueError(f"{said}; scale the images to at least 32 x 32 pixels")
        if images.dtype.kind != "f":
            raise ValueError(f"{said}; convert them, and divide 8-bit pixels by 255")
        if images.size and not (images.min() >= 0 and images.max() <= 1):  # NaN fails as well
            raise ValueError(f"{said} with values outside or NaN; divide 8-bit pixels by 255")
        return images
    listed = isinstance(images, Sequence) and not isinstance(images, (str, bytes))
    if listed and all(isinstance(one, (str, Path)) for one in images):
        return [Path(one) for one in images]
    raise ValueError(f"images must be a list of paths or a NumPy array, got {type(images).__name__}; list the files")


class OneStepDetector:
    """A DDPM on the features of good parts, read once per image.

    After :meth:`fit`: ``history`` (a TrainStep a step), ``train_seconds``, ``threshold`` (nats), ``calibration_scores``
    (held-out normal images), ``fit_index`` and ``calibration_index`` into the images it was fitted on.
    """

    def __init__(
        self,
        settings: DetectorSettings | None = None,
        seed: int = 0,
        device: str = "auto",
        cache: Path | None = None,
    ):
        self.settings = settings or DetectorSettings()
        self.seed = seed
        self.device = resolve_device(device)
        backbone = build_backbone(
            self.settings.backbone, self.settings.feature_size, self.settings.backbone_weights
        ).to(self.device)
        self.store = FeatureStore(backbone, self.settings.image_size, cache)
        self.abar = alpha_bars(self.device)
        self.denoiser: Denoiser | None = None
        self.history: list[TrainStep] = []
        self.train_seconds = 0.0
        self.mean = self.std = self.density = self.calibration_scores = None
        self.fit_index = self.calibration_index = np.empty(0, dtype=np.int64)

    def new_denoiser(self, precondition: bool | None = None) -> torch.nn.Module:
        """A denoiser of the settings' kind and size with random weights from the seed; ``precondition`` None is the
        settings'."""
        s, channels = self.settings, self.store.backbone.channels
        net = build_denoiser(s.denoiser, channels, s.feature_size, s.width, s.depth, self.seed, s.patch_size)
        return Preconditioned(net, channels) if (s.precondition if precondition is None else precondition) else net

    # --- fitting -------------------------------------------------------------------------------------------------

    def fit(
        self,
        images: Sequence[Path] | np.ndarray,
        progress: str | None = "training",
        checkpoint: Path | None = None,
        processes: Processes = ALONE,
    ) -> OneStepDetector:
        """Fit on normal ``images``: paths, or an array (N, 3, H, W) in [0, 1]. Returns self.

        ``checkpoint`` (a JSON path) makes a killed fit resume; ``progress`` labels the bars, None hides them. Of
        several ``processes`` only the main one's detector has a density and a threshold, and can be saved.
        """
        images = checked_images(images)
        self.fit_index, self.calibration_index = calibration_split(len(images), self.settings.calibration, self.seed)
        with processes.main_first():  # the others find the features in the cache
            raw = self.raw_features(images, progress)
        self.mean, self.std = channel_statistics(raw[self.fit_index])
        x0 = (raw - self.mean) / self.std
        self._train(x0[self.fit_index], progress, checkpoint, processes)
        return self.calibrate(x0[self.fit_index], x0[self.calibration_index]) if processes.is_main else self

    def _train(self, x0: Tensor, progress: str | None, checkpoint: Path | None, processes: Processes) -> None:
        self.denoiser = self.new_denoiser()  # a second fit is a fit, not more training
        if self.settings.precondition:
            self.denoiser.fit_gaussian(x0)
        identity = hashlib.sha256(x0.numpy().tobytes()).hexdigest()
        bar = tqdm(
            total=self.settings.for_images(len(x0)).steps,
            desc=progress,
            unit="step",
            disable=progress is None,
            mininterval=1.0,
        )
        self.history = []
        steps = train(
            self.denoiser,
            x0,
            self.settings,
            self.seed,
            self.device,
            checkpoint,
            identity=identity,
            processes=processes,
        )
        for statistics in steps:
            self.history.append(statistics)
            bar.update(statistics.step - bar.n)
            bar.set_postfix(loss=f"{np.mean([s.loss for s in self.history[-50:]]):.4f}", refresh=False)
            self.train_seconds = statistics.seconds
        bar.close()

    def calibrate(self, fit_x0: Tensor, calibration_x0: Tensor) -> OneStepDetector:
        """Fit the density on the fields of ``fit_x0`` and the threshold on the scores of ``calibration_x0``.

        Both are standardised features of normal images (n, C, s, s), and must not share an image.
        """
        fields = self.fields(fit_x0)
        self.density = DENSITIES[self.settings.density].fit(fields, self.denoised(fit_x0, fields))
        scores = image_score(self.nll(calibration_x0), self.settings.image_score)
        self.calibration_scores = scores.double().numpy()
        self._warn_if_silent()
        return self

    def _warn_if_silent(self) -> None:
        if not math.isinf(self.threshold):
            return
        alpha, n = self.settings.alpha, len(self.calibration_scores)
        needed, images = images_needed(alpha, self.settings.calibration)
        least = math.ceil(1e4 / (n + 1)) / 1e4  # rounded up: what is printed here must work
        warnings.warn(
            f"a false-alarm rate of {alpha} needs at least {needed} held-out normal images, there are {n}: nothing "
            f"will be flagged. Fit on {images} images or more, or take an alpha of {least:g} or more.",
            stacklevel=3,
        )

    def untrained(self, fit_x0: Tensor, calibration_x0: Tensor, **changes) -> OneStepDetector:
        """A copy whose network is the closed-form Gaussian optimum of ``fit_x0``: what no training at all detects."""
        other = copy.copy(self)
        other.denoiser = gaussian_optimum(fit_x0, self.device)
        return other.with_scoring(fit_x0, calibration_x0, **changes)

    def with_scoring(self, fit_x0: Tensor, calibration_x0: Tensor, **changes) -> OneStepDetector:
        """The same network read another way: a copy with other ``SCORING_FIELDS`` (t, input, density, image_score,
        alpha), calibrated anew. Raises ValueError for a field that would need other weights or features."""
        if unknown := set(changes) - set(SCORING_FIELDS):
            raise ValueError(f"{', '.join(sorted(unknown))} cannot change without a new fit; {SCORING_FIELDS} can")
        other = copy.copy(self)
        other.settings = DetectorSettings(**(self.settings.model_dump() | changes))
        return other.calibrate(fit_x0, calibration_x0)

    def with_alpha(self, alpha: float) -> OneStepDetector:
        """The same detector at another false-alarm rate; a copy, nothing is fitted anew. Raises ValueError unless
        1e-4 <= alpha < 1."""
        self._require_fit()
        other = copy.copy(self)
        other.settings = DetectorSettings(**(self.settings.model_dump() | {"alpha": alpha}))
        other._warn_if_silent()
        return other

    # --- reading -------------------------------------------------------------------------------------------------

    @property
    def threshold(self) -> float:
        """The conformal threshold at ``alpha``, in nats; +inf where the calibration images cannot promise it."""
        self._require_fit()
        return conformal_threshold(self.calibration_scores, self.settings.alpha)

    def raw_features(self, images: Sequence[Path] | np.ndarray, progress: str | None = None) -> Tensor:
        """(N, C, s, s) features before standardisation. Raises ValueError for what is neither paths nor an array, and
        DataError for a file that cannot be read."""
        images = checked_images(images)
        if isinstance(images, np.ndarray):
            return self.store.from_images(images)
        return self.store(images, progress=progress and f"{progress}: features")

    def features(self, images: Sequence[Path] | np.ndarray, progress: str | None = None) -> Tensor:
        """x_0: (N, C, s, s) features, standardised per channel with the fit images' statistics."""
        if self.mean is None:
            raise StorageError("this detector has not been fitted; call fit(images) or OneStepDetector.load(folder)")
        return (self.raw_features(images, progress) - self.mean) / self.std

    @torch.no_grad()
    def fields(self, x0: Tensor, t: int | None = None, how: str | None = None) -> Tensor:
        """The inverse residual field of ``x0``, (N, C, s, s): one evaluation of the network for each image.

        At the settings' timestep and input, or at ``t`` and ``how``.
        """
        t, how, eps = self._reading(x0.shape[1:], t, how)
        at_t = fold(self.denoiser, t)
        batches = (batch.to(self.device) for batch in x0.split(batch_size(self.device)))
        parts = [inverse_residual_field(lambda z, _: at_t(z), x, t, self.abar, how, eps).cpu() for x in batches]
        return torch.cat(parts)

    def network_input(self, x0: Tensor, t: int | None = None, how: str | None = None) -> Tensor:
        """What the network is shown for ``x0``, on the CPU: the features themselves, scaled, or noised."""
        t, how, eps = self._reading(x0.shape[1:], t, how)
        return network_input(x0, t, self.abar.cpu(), how, None if eps is None else eps.cpu())

    def denoised(self, x0: Tensor, fields: Tensor, t: int | None = None, how: str | None = None) -> Tensor:
        """The network's denoised estimate of ``x0`` that belongs to its ``fields`` (both (N, C, s, s), on the CPU); it
        costs no further evaluation."""
        abar_t = self.abar[self.settings.t if t is None else t].cpu()
        return predicted_x0(self.network_input(x0, t, how), fields, abar_t)

    def _reading(self, shape: Sequence[int], t: int | None, how: str | None) -> tuple[int, str, Tensor | None]:
        """(timestep, input, noise (1, *shape) or None), the settings' where None."""
        t, how = self.settings.t if t is None else t, how or self.settings.input
        if how != "noised":
            return t, how, None
        # One fixed draw for every image that this detector ever sees: it cannot carry a label, whatever the order of
        # the images, and a score does not depend on the batch it was computed in.
        generator = torch.Generator().manual_seed(self.seed)
        return t, how, torch.randn((1, *shape), generator=generator).to(self.device)

    def scorer(self, precision: Literal["fp32", "bf16"] = "fp32") -> Scorer:
        """Images to scores and maps on the detector's device, with everything that can be worked out beforehand done.

        For many calls; :meth:`score` and :meth:`nll` use one. ``precision`` is that of the DiT's matrix products.
        """
        self._require_fit()
        s, backbone = self.settings, self.store.backbone
        t, how, noise = self._reading((backbone.channels, s.feature_size, s.feature_size), None, None)
        return Scorer.on_device(
            self.device,
            backbone=backbone,
            mean=self.mean,
            std=self.std,
            denoiser=fold(self.denoiser, t, {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]),
            density=self.density,
            abar=self.abar,
            t=t,
            input=how,
            noise=noise,
            rule=s.image_score,
            image_size=s.image_size,
        )

    def nll(self, x0: Tensor) -> Tensor:
        """-log density of the field at each location, (N, s, s), in nats."""
        return self.scorer().nll(x0).cpu()

    def score(self, images: Sequence[Path] | np.ndarray, progress: str | None = None) -> Scores:
        """Scores, maps, p-values and verdicts of ``images`` (paths, or an array (N, 3, H, W) in [0, 1]).

        Raises ValueError for what is neither, and DataError for a file that cannot be read."""
        images, size = checked_images(images), self.settings.image_size
        self._require_fit()
        if not len(images):
            return Scores(np.empty(0), np.empty((0, size, size), np.float32), np.empty(0), np.empty(0, bool))
        if isinstance(images, np.ndarray):
            return self._verdicts(*self.scorer()(torch.from_numpy(images.astype(np.float32, copy=False))))
        return self.score_features(self.features(images, progress))

    def score_features(self, x0: Tensor) -> Scores:
        """As :meth:`score`, from standardised features (N, C, s, s)."""
        nll = self.nll(x0)
        return self._verdicts(image_score(nll, self.settings.image_score), anomaly_map(nll, self.settings.image_size))

    def _verdicts(self, scores: Tensor, maps: Tensor) -> Scores:
        numbers = scores.cpu().double().numpy()
        p_values = conformal_p_values(self.calibration_scores, numbers)
        return Scores(numbers, maps.cpu().numpy(), p_values, numbers > self.threshold)

    def _require_fit(self) -> None:
        if self.density is None:
            raise StorageError("this detector has not been fitted; call fit(images) or OneStepDetector.load(folder)")

    # --- files ---------------------------------------------------------------------------------------------------

    def save(self, folder: Path, extra: dict | None = None) -> Path:
        """Write ``folder``/detector.json and its safetensors; ``extra`` is kept in the JSON.
        Returns the JSON's path."""
        self._require_fit()
        tensors = {f"denoiser.{name}": tensor for name, tensor in self.denoiser.state_dict().items()}
        tensors |= {f"density.{f.name}": getattr(self.density, f.name) for f in fields(self.density)}
        tensors |= {
            "mean": self.mean,
            "std": self.std,
            "calibration_scores": torch.from_numpy(self.calibration_scores),
            "fit_index": torch.from_numpy(self.fit_index),
            "calibration_index": torch.from_numpy(self.calibration_index),
            "history": pack_history(self.history),
        }
        meta = {
            "format": FORMAT,
            "settings": self.settings.model_dump(),
            "seed": self.seed,
            "backbone_fingerprint": self.store.backbone.fingerprint(),
            "train_seconds": self.train_seconds,
            "extra": extra or {},
        }
        return save_tensors(Path(folder) / "detector.json", tensors, meta)

    @classmethod
    def load(cls, folder: Path, device: str = "auto", cache: Path | None = None) -> OneStepDetector:
        """The detector saved in ``folder``. Raises StorageError if it is missing, damaged, of another format, or was
        fitted on another backbone's features than this installation makes."""
        path = Path(folder) / "detector.json"
        resolve_device(device)  # its ValueError is not about the file
        tensors, meta = load_tensors(path)
        if meta.get("format") != FORMAT:
            raise StorageError(f"{path} has format {meta.get('format')!r}, this version reads {FORMAT}; fit it again.")
        try:
            if not isinstance(meta["seed"], int) or not 0 <= meta["seed"] < 2**63:
                raise ValueError(f"seed {meta['seed']!r}")
            detector = cls(DetectorSettings(**meta["settings"]), meta["seed"], device, cache)
            if detector.store.backbone.fingerprint() != meta["backbone_fingerprint"]:
                raise StorageError(f"{path} was fitted on another {detector.settings.backbone}; fit it again.")
            detector._restore(tensors, meta)
        except (BackboneError, StorageError):
            raise  # of a backbone, the file is fine: this installation lacks something
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = one_line(error)
            raise StorageError(f"{path} does not describe a detector of ours ({reason}); fit it again.") from None
        return detector

    def _shapes(self) -> dict[str, tuple]:
        """What a saved detector's tensors must be: (dtype, shape) by name, None for a length that is left open."""
        s, channels, size = self.settings, self.store.backbone.channels, self.settings.feature_size
        with torch.device("meta"):  # only the shapes: no memory, however large a file says that the network is
            net = DENOISERS[s.denoiser](channels, size, s.width, s.depth, s.patch_size)
        denoiser = Preconditioned(net, channels) if s.precondition else net
        expected = {f"denoiser.{name}": one for name, one in denoiser.state_dict().items()}
        blank = torch.zeros(2, channels, size, size)
        density = DENSITIES[self.settings.density].fit(blank, blank)
        expected |= {f"density.{f.name}": getattr(density, f.name) for f in fields(density)}
        expected |= {name: torch.empty(1, channels, 1, 1) for name in ("mean", "std")}
        return {name: (one.dtype, tuple(one.shape)) for name, one in expected.items()} | {
            "calibration_scores": (torch.float64, (None,)),
            "fit_index": (torch.int64, (None,)),
            "calibration_index": (torch.int64, (None,)),
            "history": (torch.float64, (None, 5)),
        }

    def _check(self, tensors: dict[str, Tensor]) -> None:
        """Raises ValueError unless ``tensors`` are what :meth:`save` writes for these settings, and finite."""
        expected = self._shapes()
        if odd := sorted(set(expected) ^ set(tensors)):
            raise ValueError(f"tensors that are missing or not ours: {', '.join(odd[:3])}")
        for name, (dtype, shape) in expected.items():
            one = tensors[name]
            fits = len(shape) == one.ndim and all(n in (None, m) for n, m in zip(shape, one.shape, strict=True))
            if one.dtype != dtype or not fits:
                raise ValueError(f"{name} is {one.dtype} {tuple(one.shape)}, not {dtype} {shape}")
            if name != "history" and not one.isfinite().all():
                raise ValueError(f"{name} is not finite")
        split = torch.cat([tensors["fit_index"], tensors["calibration_index"]]).sort().values
        if not torch.equal(split, torch.arange(len(split))):
            raise ValueError("fit_index and calibration_index do not share the images out")

    def _restore(self, tensors: dict[str, Tensor], meta: dict) -> None:
        self._check(tensors)

        def under(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

        self.denoiser = self.new_denoiser()
        self.denoiser.load_state_dict(under("denoiser."))
        self.denoiser.to(self.device).eval()
        self.density: Density = DENSITIES[self.settings.density](**under("density."))
        self.mean, self.std = tensors["mean"], tensors["std"]
        self.calibration_scores = tensors["calibration_scores"].numpy()
        self.fit_index = tensors["fit_index"].numpy()
        self.calibration_index = tensors["calibration_index"].numpy()
        self.history = unpack_history(tensors["history"])
        self.train_seconds = float(meta["train_seconds"])


def remove_leftovers(folder: Path) -> None:
    """Remove what a fit and killed writes left beside a saved detector; only for whoever holds the folder's lock."""
    # Only names that we give: the folder may be one of the user's, with a checkpoint.pt of their own.
    ours = re.compile(r"checkpoint(\.[0-9a-f]{12})?\.(json|safetensors)|\.(checkpoint|detector)-[0-9a-f]{8}\.\w+")
    for leftover in Path(folder).glob("*"):
        if ours.fullmatch(leftover.name):
            leftover.unlink(missing_ok=True)


def milliseconds_per_image(score: Callable[[np.ndarray], object], images: np.ndarray, repeats: int = 2) -> float:
    """Median wall time of ``score(images)`` for each image, after one warm-up call; images (N, 3, H, W) in memory.

    From pixels to result, so the backbone is included; the device is synchronised before the clock is read.
    """
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        score(images)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:])) * 1000 / len(images)
