"""Registry and toolchain for saliency-guided weakly-supervised semantic segmentation.

The names below are all that most programs need; each is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsssbed_hub.evaluation.curves import threshold_curve
    from wsssbed_hub.evaluation.pseudo_label import pseudo_label
    from wsssbed_hub.registry.open_artifact import open_artifact
    from wsssbed_hub.registry.pull import load_dataset, pull

    __version__: str

__all__ = [
    "__version__",
    "load_dataset",
    "open_artifact",
    "pseudo_label",
    "pull",
    "threshold_curve",
]

_HOME = {
    "load_dataset": "registry.pull",
    "open_artifact": "registry.open_artifact",
    "pseudo_label": "evaluation.pseudo_label",
    "pull": "registry.pull",
    "threshold_curve": "evaluation.curves",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("wsssbed-hub")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
