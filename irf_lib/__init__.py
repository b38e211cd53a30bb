"""One-step diffusion anomaly detection with inverse residual fields: an independent reproduction of OSD-IRF.

The house, floors from the top (nothing imports upward; a test holds the list):

    __main__.py                                                  the command line
    runs.py                                                      a run: parameters, stages, provenance, papermill
    detector.py    baselines.py                                  fit / score / save; what to compare with
    feature_store.py    embedded.py                              feature maps on disk; the textures as files
    datasets.py                                                  what images are
    irf.py  diffusion.py  scoring.py  metrics.py  features.py  textures.py  plots.py  storage.py
"""

__version__ = "0.1.0"
