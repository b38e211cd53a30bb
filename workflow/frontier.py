"""What shorter trainings cost and lose: python workflow/frontier.py --data data/mvtec_ad --categories bottle pill screw

For each category and seed of a run: the loss on held-out good images (mean over timesteps, beside that of the Gaussian
optimum where training starts) and the image AUROC after a quarter, half and all of the steps. The shorter trainings
are made here and kept in the run's folder, so the command resumes. A step's time is in benchmark.csv of notebook 12.
"""

import argparse

import numpy as np
import pandas as pd

from irf_lib.diffusion import denoising_loss
from irf_lib.networks.denoisers import gaussian_optimum
from irf_lib.run.results import Run

TIMESTEPS = np.linspace(1, 999, 21).round().astype(int).tolist()


def rows_of(run: Run) -> list[dict]:
    """One row per length of training of one detector."""
    whole, rows = run.detector(), []
    test_set, (fitted, held_out) = run.test_set(whole), whole.good  # the same for every length

    def loss(network) -> float:
        return denoising_loss(network, held_out, TIMESTEPS, run.seed).mean().item()

    optimum = loss(gaussian_optimum(fitted))
    for part in (4, 2, 1):
        steps = run.settings.steps // part
        detector = whole if part == 1 else run.variant(f"frontier-{part}", {"steps": steps})
        row, interval, _ = run.row(test_set, "irf", detector.read(test_set.x0))
        losses = {"heldout_loss": loss(detector.denoiser), "gaussian_loss": optimum}
        found = {name: interval[name] for name in ("lo", "hi", "n")}
        rows.append(run.place | {"steps": steps} | losses | {"I-AUROC": row["I-AUROC"], "AUPRO": row["AUPRO"]} | found)
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="a data set; none is the embedded data")
    parser.add_argument("--categories", nargs="+", default=[""])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--preset", default="reference")
    parser.add_argument("--out", default="results/reference-run")
    given, rows = parser.parse_args(), []
    for category in given.categories:
        for seed in given.seeds:
            where = {"data": given.data, "category": category, "seed": seed}
            rows += rows_of(Run.open("frontier", preset=given.preset, out=given.out, device="cpu", **where))
    whole = Run.open("frontier", preset=given.preset, out=given.out, device="cpu")
    whole.save_table(pd.DataFrame(rows).round(4), "frontier.csv")
    whole.finish()


if __name__ == "__main__":
    main()
