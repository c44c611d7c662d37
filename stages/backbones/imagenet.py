"""ImageNet weights by timm, from the Hub cache."""

from __future__ import annotations

from typing import Any

from wsssbed_hub.utils.errors import HubError


def timm_model(name: str) -> Any:
    """timm's pretrained model ``name``. Raises HubError if its weights cannot be had."""
    import timm

    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # the Hub client raises a dozen types for "not there"
        raise HubError(
            f"The ImageNet weights {name} are neither in the Hub cache nor to be had now "
            f"({type(error).__name__}). Connect once to fetch them, or give a file with --init."
        ) from None
