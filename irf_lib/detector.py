"""Detector: from good parts to a verdict, by the one pipeline that notebooks, command line and studies use.

    detector = Detector(Settings(), seed=0).fit(good_images)     # trains once
    result = detector.read(new_images)                           # .scores .maps .p_values
    result.flagged(alpha=0.05)                                   # the verdict
    detector.reading.t                                           # the timestep, chosen in fit without labels
    detector.read(new_images, Reading(t=300))                    # the same network, read another way
    detector.save(file);  Detector.load(file)

images -> x0 (features) -> field (irf.py) -> -log density -> score and map; a field is a prefix of a score.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .conformal import Scores, calibration_split, near_duplicates
from .data.images import Images, checked_images, load_images
from .diffusion import TrainStep, alpha_bars, denoising_loss, resolve_device, train
from .files import InputError
from .irf import Denoiser, inverse_residual_field, network_input
from .networks.backbones import build_backbone, channel_statistics
from .networks.denoisers import Preconditioned, build_denoiser, gaussian_optimum
from .networks.fast import fold
from .saved import SavedAsOneFile
from .scoring import Density, anomaly_map, density_class, image_score
from .settings import Reading, Settings

if TYPE_CHECKING:
    from accelerate import Accelerator


# Where fit looks for the best timestep. Later ones leave the loss of any network, and so a gain, near 0.
TIMESTEPS = (20, 50, 75, 100, 125, 150, 200, 250, 300, 400, 500, 700)


class Detector(SavedAsOneFile):
    """A DDPM on the features of good parts, read once per image.

    After :meth:`fit`: ``history`` (a TrainStep per step), ``train_seconds``, ``fit_index`` and ``calibration_index``
    into the images that it was fitted on, and ``best_t``, which the t "auto" of a reading stands for. ``cache``
    (data.cache.FeatureCache) keeps features of image files on disk."""

    def __init__(
        self,
        settings: Settings | None = None,
        reading: Reading | None = None,
        seed: int = 0,
        device: str = "auto",
        cache: Callable | None = None,
        local_only: bool = False,
    ):
        super().__init__()
        self.settings, self.asked = settings or Settings(), reading or Reading()
        self.seed, self.cache, self.extra, self.best_t = seed, cache, {}, None
        s = self.settings
        self.backbone = build_backbone(s.backbone, s.feature_size, s.backbone_weights, local_only)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.zeros(1, self.backbone.channels, 1, 1))
        self.register_buffer("abar", alpha_bars(), persistent=False)
        self.denoiser = None
        self.history: list[TrainStep] = []
        self.train_seconds = 0.0
        self.fit_index = self.calibration_index = np.empty(0, dtype=np.int64)
        self._good: tuple[Tensor, Tensor] | None = None
        self._forget()
        self.to(resolve_device(device))

    def _forget(self) -> None:
        """Drop what was worked out from the network: folded copies, fitted readings, fields of the good images."""
        self._folded: dict[tuple, Denoiser] = {}
        self._fitted: dict[tuple, tuple[Density, Tensor]] = {}
        self._good_fields: tuple = (None, None)
        self._draw: Tensor | None = None

    @property
    def reading(self) -> Reading:
        """How it reads by default: as ``asked``, with the timestep that "auto" stands for."""
        return self.resolved(self.asked)

    def resolved(self, reading: Reading | None) -> Reading:
        """``reading``, by default the detector's own, with ``best_t`` in the place of "auto" once it is known."""
        reading = reading or self.asked
        return reading.model_copy(update={"t": self.best_t or "auto"}) if reading.t == "auto" else reading

    @property
    def device(self) -> torch.device:
        return self.abar.device

    def new_denoiser(self, precondition: bool | None = None) -> nn.Module:
        """A denoiser of the settings' kind and size with random weights; ``precondition`` None is the settings'."""
        s, channels = self.settings, self.backbone.channels
        net = build_denoiser(s.denoiser, channels, s.feature_size, s.width, s.depth, self.seed, s.patch_size)
        return Preconditioned(net, channels) if (s.precondition if precondition is None else precondition) else net

    # --- fitting -------------------------------------------------------------------------------------------------

    def fit(
        self,
        images: Images,
        progress: str | None = "training",
        checkpoint: Path | None = None,
        accelerator: Accelerator | None = None,
    ) -> Self:
        """Train on good ``images``: paths, or an array (N, 3, H, W) in [0, 1]; fit the default reading. Returns self.

        With a ``checkpoint`` file a killed fit resumes; ``progress`` labels the bars, None hides them. Of the processes
        of an ``accelerator`` only the main one's detector has a density, and can be saved."""
        images, share = checked_images(images), self.settings.calibration
        calibration_split(len(images), share, self.seed)  # refuses too few images before their features are computed
        with accelerator.main_process_first() if accelerator else nullcontext():  # the others find the cached features
            raw = self._together(self._raw(images, progress))
        self.fit_index, self.calibration_index = calibration_split(len(raw), share, self.seed, near_duplicates(raw))
        mean, std = channel_statistics(raw[self.fit_index])
        self.mean.copy_(mean)
        self.std.copy_(std)
        x0 = (raw - mean) / std
        self._good = x0[self.fit_index], x0[self.calibration_index]
        self._train(progress, checkpoint, accelerator)
        if accelerator is None or accelerator.is_main_process:
            self.best_t = self._choose_t()
            self._normal(self.reading)
        return self

    def _choose_t(self) -> int:
        """Where the denoising loss of ten held-out good images lies furthest below the Gaussian optimum's, for the same
        noise (notebook 06)."""
        networks = gaussian_optimum(self.good[0], self.device), self.denoiser
        optimum, ours = (denoising_loss(one, self.good[1][:10], TIMESTEPS, self.seed, self.device) for one in networks)
        return TIMESTEPS[int((optimum - ours).mean(dim=1).argmax())]

    def _train(self, progress: str | None, checkpoint: Path | None, accelerator: Accelerator | None) -> None:
        x0, steps = self._good[0], self.settings.for_images(len(self.fit_index)).steps
        self._forget()
        self.denoiser = self.new_denoiser()  # a second fit is a fit, not more training
        if self.settings.precondition:
            self.denoiser.fit_gaussian(x0)
        identity = hashlib.sha256(x0.numpy().tobytes()).hexdigest()
        resumable = {"checkpoint": checkpoint, "identity": identity, "accelerator": accelerator}
        self.history = []
        with tqdm(total=steps, desc=progress, unit="step", disable=progress is None, mininterval=1.0) as bar:
            for step in train(self.denoiser, x0, self.settings, self.seed, self.device, **resumable):
                self.history.append(step)
                bar.update(step.step - bar.n)
                bar.set_postfix(loss=f"{np.mean([s.loss for s in self.history[-50:]]):.4f}", refresh=False)
                self.train_seconds = step.seconds

    def attach(self, images: Images) -> Self:
        """Give a loaded detector the good images that it was fitted on, for any reading. Raises InputError for another
        number of images."""
        if len(images) != (n := len(self.fit_index) + len(self.calibration_index)):
            raise InputError(f"this detector was fitted on {n} good images, not on {len(images)}; give it those")
        x0 = self.features(images)
        self._good = x0[self.fit_index], x0[self.calibration_index]
        return self

    @property
    def good(self) -> tuple[Tensor, Tensor]:
        """Standardised features of the good images, on the CPU: those that it was fitted on, and those held out."""
        if self._good is None:
            raise InputError("another reading needs the good images: call attach(images), or fit(images)")
        return self._good

    # --- the pipeline: images -> features -> field -> -log density ------------------------------------------------

    @property
    def batch_size(self) -> int:
        """Images that go through the denoiser together: what stays in a CPU's cache, or enough to fill a GPU."""
        return 8 if self.device.type == "cpu" else 64

    def _raw(self, images: Images | Tensor, progress: str | None = None) -> Iterator[Tensor]:
        """Features before standardisation, batch after batch; on the device, or where the cache has them on the CPU."""
        if self.cache is not None and isinstance(images, list):
            known = self.cache(images, self.backbone, self.settings.image_size, progress and f"{progress}: features")
            yield from known.split(self.batch_size)
            return
        starts = range(0, len(images), self.batch_size)
        for start in tqdm(starts, progress, disable=progress is None, unit="batch", leave=False):
            part = images[start : start + self.batch_size]
            pixels = load_images(part, self.settings.image_size) if isinstance(part, list) else part
            yield self.backbone(torch.as_tensor(pixels).to(self.device, torch.float32)).float()

    def _together(self, batches: Iterable[Tensor]) -> Tensor:
        """(N, C, s, s) on the CPU, also for no batch at all."""
        blank = torch.empty(0, self.backbone.channels, self.backbone.size, self.backbone.size)
        return torch.cat([blank, *(batch.float().cpu() for batch in batches)])

    def features(self, images: Images, progress: str | None = None) -> Tensor:
        """x_0: (N, C, s, s) features on the CPU, standardised per channel with the fitted images' statistics. Raises
        InputError for a file that cannot be read."""
        self._require_fit()
        return self._together(self._x0(images, progress))

    def _x0(self, images: Images | Tensor, progress: str | None = None) -> Iterator[Tensor]:
        """Standardised features on the device, batch after batch: of images, or features (a Tensor) as they are."""
        if isinstance(images, Tensor):
            return (batch.to(self.device) for batch in images.split(self.batch_size))
        return self._standardised(self._raw(checked_images(images), progress))

    def _standardised(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        return ((batch.to(self.device) - self.mean) / self.std for batch in batches)

    @torch.no_grad()
    def _stages(
        self,
        batches: Iterable[Tensor],
        reading: Reading,
        density: Density | None = None,
        fields: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """(field, -log density) of each batch of features, on the device; ``fields`` are those that are known already.

        The network is folded once for each timestep and precision, and asked once for each image."""
        start, key = 0, (reading.t, dtype, self.device)
        for x0 in batches:
            if fields is None:
                if key not in self._folded:  # the last few are kept: one in bf16 takes gigabytes at the paper's size
                    kept = list(self._folded.items())[-3:]
                    self._folded = dict(kept) | {key: fold(self.denoiser, reading.t, dtype)}
                noise = self._noise(reading, x0)
                field = inverse_residual_field(self._folded[key], x0, reading.t, self.abar, reading.input, noise)
            else:
                field = fields[start : start + len(x0)].to(self.device)
                start += len(x0)
            yield field, None if density is None else density.to(self.device).nll(field)

    def _noise(self, reading: Reading, x0: Tensor) -> Tensor | None:
        if reading.input != "noised":
            return None
        # One fixed draw for every image that this detector ever sees: it cannot carry a label, whatever the order of
        # the images, and a score does not depend on the batch it was computed in.
        if self._draw is None:
            shape = 1, self.backbone.channels, self.backbone.size, self.backbone.size
            self._draw = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed))
        return self._draw.to(x0.device)

    def network_input(self, x0: Tensor, reading: Reading | None = None) -> Tensor:
        """What the network is shown for features ``x0``: the features themselves, scaled, or noised."""
        reading = self.resolved(reading)
        return network_input(x0, reading.t, self.abar.to(x0.device), reading.input, self._noise(reading, x0))

    def fields(self, x0: Tensor, reading: Reading | None = None) -> Tensor:
        """The inverse residual field of features ``x0``, (N, C, s, s) on the CPU: one evaluation per image."""
        self._require_fit()
        return self._together(field for field, _ in self._stages(self._x0(x0), self.resolved(reading)))

    def read(
        self,
        images: Images | Tensor,
        reading: Reading | None = None,
        fields: Tensor | None = None,
        progress: str | None = None,
    ) -> Scores:
        """Scores, maps and p-values of ``images``: paths, an array (N, 3, H, W) in [0, 1], or features (N, C, s, s).

        ``fields`` are those of these features at this reading's timestep and input, where they are known already.
        Raises InputError for what is none of these, for a file that cannot be read, and for a reading that needs the
        good images where they were not attached."""
        self._require_fit()
        reading = self.resolved(reading)
        found = self._stages(self._x0(images, progress), reading, self.density(reading), fields)
        nll = torch.cat([torch.empty(0, self.backbone.size, self.backbone.size), *(one.cpu() for _, one in found)])
        scores = image_score(nll, reading.image_score) if len(nll) else torch.empty(0)
        return Scores(nll, scores.double().numpy(), self.calibration(reading), self.settings.image_size, reading)

    def scorer(self, precision: Literal["fp32", "bf16"] = "fp32") -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """A function of pixels (N, 3, H, W) to (scores (N,), maps (N, image_size, image_size)), both on the device:
        :meth:`read` and nothing else, for timing. ``precision`` is that of the DiT's matrix products."""
        reading, dtype = self.reading, {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        density = self.density()

        def score(images: Tensor) -> tuple[Tensor, Tensor]:
            batches = self._standardised(self._raw(images))
            nll = torch.cat([one for _, one in self._stages(batches, reading, density, dtype=dtype)])
            return image_score(nll, reading.image_score), anomaly_map(nll, self.settings.image_size)

        return score

    # --- what a reading knows of good parts -----------------------------------------------------------------------

    def _normal(self, reading: Reading) -> tuple[Density, Tensor]:
        """The reading's density, fitted when first asked for, and the anomaly values (n, s, s) of held-out images."""
        key, place = (reading.t, reading.input, reading.density), (reading.t, reading.input)
        if key not in self._fitted:
            fit_x0, held_out_x0 = self.good
            if self._good_fields[0] != place:
                self._good_fields = place, (self.fields(fit_x0, reading), self.fields(held_out_x0, reading))
            fields, held_out = self._good_fields[1]
            density = density_class(reading.density).fit(fields)
            found = self._stages(self._x0(held_out_x0), reading, density, held_out)
            self._fitted[key] = density, torch.cat([nll.cpu() for _, nll in found])
        return self._fitted[key]

    def density(self, reading: Reading | None = None) -> Density:
        """The density of the good images' fields under a reading."""
        self._require_fit()
        return self._normal(self.resolved(reading))[0]

    def calibration(self, reading: Reading | None = None) -> np.ndarray:
        """Scores (n,) of the held-out good images under a reading, float64."""
        reading = self.resolved(reading)
        return image_score(self._normal(reading)[1], reading.image_score).double().numpy()

    def threshold(self, alpha: float = 0.05, reading: Reading | None = None) -> float:
        """The conformal threshold in nats, as :meth:`Scores.threshold`."""
        return Scores(torch.empty(0), np.empty(0), self.calibration(reading), 0, self.reading).threshold(alpha)

    def with_reading(self, reading: Reading) -> Detector:
        """A copy whose default reading is another one; network and fitted readings are shared."""
        other = copy.copy(self)
        other.asked = reading
        return other

    def with_network(self, denoiser: Denoiser) -> Detector:
        """A copy that asks another network, such as ``gaussian_optimum(detector.good[0])``; the rest is shared."""
        other = copy.copy(self)
        other._modules = {name: module for name, module in self._modules.items() if name != "denoiser"}
        other.denoiser = denoiser
        other._forget()
        return other

    def _require_fit(self) -> None:
        if self.denoiser is None:
            raise InputError("this detector has not been fitted; call fit(images) or Detector.load(file)")
