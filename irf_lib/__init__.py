"""One-step diffusion anomaly detection with inverse residual fields: an independent reproduction of OSD-IRF.

from irf_lib import Detector, Reading, Settings, evaluate, irf
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .detector import Detector
    from .metrics import evaluate
    from .settings import Reading, Settings

__version__ = "0.2.0"
__all__ = ["Detector", "Reading", "Settings", "evaluate", "irf"]

_HOMES = {"Detector": "detector", "Settings": "settings", "Reading": "settings", "evaluate": "metrics", "irf": "irf"}


def __getattr__(name: str):
    """What is named above is imported when it is first used: torch and scikit-learn take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f".{_HOMES[name]}", __name__)
    return home if name == "irf" else getattr(home, name)
