"""One test image under one reading of a detector: the view of notebook 05, and with sliders that of notebook 14.

The axes are kept from one view to the next, because new ones would take as long as the network."""

import base64
import io
import time

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine

from ..conformal import Scores, conformal_threshold
from ..detector import Detector
from ..irf import INPUTS
from ..scoring import DENSITIES
from ..settings import Reading
from .figures import ANOMALOUS, GOOD, show_image


class Explorer:
    """``test``: a run.results.TestSet; ``pictures``: its images, (N, 3, H, W) in [0, 1]. ``figure``: what :meth:`look`
    drew last; ``first``: the choice that it starts from; ``widget``: what a notebook displays, or else the picture."""

    def __init__(self, detector: Detector, test, pictures: np.ndarray, alpha: float = 0.05):
        self.detector, self.test, self.pictures = detector, test, pictures
        reading, slow = detector.reading, {"continuous_update": False}  # a slider answers when it is let go
        index, step = int(test.labels.argmax()), 5 if reading.t % 5 == 0 else 1
        self.controls = {
            "index": widgets.IntSlider(index, 0, len(test.labels) - 1, description="image", **slow),
            "t": widgets.IntSlider(reading.t, 0, 999, step, description="t", **slow),
            "input": widgets.Dropdown(options=list(INPUTS), value=reading.input, description="input"),
            "density": widgets.Dropdown(options=list(DENSITIES), value=reading.density, description="density"),
            "alpha": widgets.FloatSlider(alpha, min=0.01, max=0.5, step=0.01, description="alpha"),
        }
        self.first = {name: control.value for name, control in self.controls.items()} | {"alpha": alpha}
        for control in self.controls.values():
            control.observe(self._moved, names="value")
        rows = [widgets.HBox(list(self.controls.values())[i : i + 3]) for i in (0, 3)]
        self.note, self.screen = widgets.HTML(), widgets.Image(format="png")
        self.widget = widgets.VBox([*rows, self.note, self.screen])
        # A layout engine that does nothing: without one, savefig works out the style's layout anew each time.
        fixed = PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True)
        self.figure = Figure(figsize=(9.6, 2.7), layout=fixed)
        self._axes = self.figure.subplots(1, 4, gridspec_kw={"width_ratios": [1, 1.1, 1.1, 1.1]})
        self.figure.subplots_adjust(left=0.005, right=0.99, bottom=0.17, top=0.86, wspace=0.24)
        self._drawn = [show_image(axis, np.eye(2)) for axis in self._axes[:3]]
        for axis, drawn in zip(self._axes[1:3], self._drawn[1:], strict=True):
            self.figure.colorbar(drawn, ax=axis, fraction=0.046)

    def _repr_mimebundle_(self, **_) -> dict:
        return self.widget._repr_mimebundle_() | {"image/png": base64.b64encode(self.screen.value).decode()}

    def _moved(self, _) -> None:
        self.look(**{name: control.value for name, control in self.controls.items()})

    def look(self, **changes) -> Scores:
        """The first choice with ``changes`` (index, t, input, density, alpha), drawn and said in words; returns what
        the detector reads. Raises ValueError for another name, an alpha outside (0, 1) and an impossible reading."""
        start, choice = time.perf_counter(), self.first | changes
        index, alpha = choice.pop("index"), choice.pop("alpha")
        reading, x0 = Reading(**(self.detector.reading.model_dump() | choice)), self.test.x0[[index]]
        field = self.detector.fields(x0, reading)  # (1, C, s, s)
        seen = self.detector.read(x0, reading, fields=field)
        threshold = conformal_threshold(seen.calibration, alpha)
        verdict = "flagged" if seen.scores[0] > threshold else "passed"
        self._draw_pictures(index, field[0].norm(dim=0).numpy(), seen.maps[0], reading)
        self._draw_scores(seen, threshold, verdict)
        self.figure.savefig(file := io.BytesIO(), dpi=100)
        self.screen.value = file.getvalue()
        limit = f"{threshold:.1f}" if np.isfinite(threshold) else "none: too few held-out images"
        taken = f"<small>({(time.perf_counter() - start) * 1000:.0f} ms)</small>"
        said = f"score {seen.scores[0]:.1f} nats, p = {seen.p_values[0]:.3f}, threshold {limit}"
        self.note.value = f"<b>{verdict}</b> {self.test.names[index]}: {said} {taken}"
        return seen

    def _draw_pictures(self, index: int, norm: np.ndarray, heat: np.ndarray, reading: Reading) -> None:
        """Image, field and map; each map has colour limits of its own, since readings differ in scale."""
        pictures = self.pictures[index].transpose(1, 2, 0).clip(0, 1), norm, heat
        name = self.test.names[index].replace("_", " ")
        titles = name, f"length of field, t = {reading.t}", f"map (nats), {reading.density}"
        for drawn, values, title in zip(self._drawn, pictures, titles, strict=True):
            height, width = values.shape[:2]
            drawn.set(data=values, clim=(values.min(), values.max()), extent=(-0.5, width - 0.5, height - 0.5, -0.5))
            drawn.axes.set_title(title)
        for outline in list(self._axes[0].collections):
            outline.remove()
        if self.test.masks is not None and self.test.masks[index].any():
            self._axes[0].contour(self.test.masks[index], levels=[0.5], colors=[ANOMALOUS], linewidths=0.8)

    def _draw_scores(self, seen: Scores, threshold: float, verdict: str) -> None:
        axis, good, score = self._axes[3], seen.calibration, seen.scores[0]
        axis.clear()
        axis.hist(good, 15, color=GOOD, alpha=0.6, label=f"held-out good ({len(good)})")
        # A score far out would squeeze the good images into one line: from four times their range on it is at the edge.
        reach = good.min() + 4 * (np.ptp(good) or 1.0)
        axis.axvline(min(score, reach), ymax=0.68, color=ANOMALOUS, lw=2, label=f"image, p = {seen.p_values[0]:.3f}")
        if score > reach:
            axis.text(reach, axis.get_ylim()[1] / 2, f"{score:.0f} \N{RIGHTWARDS ARROW} ", ha="right", color=ANOMALOUS)
        if np.isfinite(threshold):
            axis.axvline(threshold, ymax=0.68, color="black", lw=1, ls="--", label=f"threshold {threshold:.0f}")
        axis.set_title(f"score {score:.0f} nats: {verdict}")
        axis.set(ylim=(0, axis.get_ylim()[1] / 0.68), yticks=[])  # the legend stands above the bars
        axis.set_xlabel("image score (nats)")
        axis.legend(loc="upper center")
