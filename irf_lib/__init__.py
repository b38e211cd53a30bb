"""One-step diffusion anomaly detection with inverse residual fields: an independent reproduction of OSD-IRF.

The house, floors from the top (nothing imports upward; a test holds the list):

    __main__.py    train.py                         the command line; training on several processes
    runner.py                                       notebooks through papermill
    runs.py                                         a results folder: detectors, tables, figures, provenance
    benchmark.py    inspection.py    explorer.py    what it costs; one's own parts; one reading at a time
    timesteps.py    baselines.py                    a network read at many t; what to compare with
    detector.py                                     fit / score / save
    scorer.py    folding.py    feature_store.py     the fast path; feature maps on disk
    embedded.py    downloads.py                     the textures as files; public data sets by name
    datasets.py    diffusion.py    summary.py       what images are; the DDPM; means and differences over seeds
    irf.py  scoring.py  metrics.py  features.py  textures.py  cutpaste.py  invariance.py  normality.py  plots.py
    storage.py  resampling.py  stages.py            whole files or none; intervals; what there is to run
"""

__version__ = "0.1.0"
