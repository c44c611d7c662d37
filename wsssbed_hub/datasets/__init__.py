"""Where the images and labels are: targets, SOD datasets, and the synthetic ``shapes``."""

from wsssbed_hub.datasets.base import DownloadSource, NotThere, Target, TargetSpec
from wsssbed_hub.datasets.catalog import (
    SOD_DATASETS,
    TARGETS,
    find_target,
    open_sod_dataset,
    open_sod_images,
    open_target,
    own_targets,
)
from wsssbed_hub.datasets.check import DatasetReport, FileFinding, check
from wsssbed_hub.datasets.shapes import make_shapes
from wsssbed_hub.datasets.sod import SodDataset, SodSpec

__all__ = [
    "SOD_DATASETS",
    "TARGETS",
    "DatasetReport",
    "DownloadSource",
    "FileFinding",
    "NotThere",
    "SodDataset",
    "SodSpec",
    "Target",
    "TargetSpec",
    "check",
    "find_target",
    "make_shapes",
    "open_sod_dataset",
    "open_sod_images",
    "open_target",
    "own_targets",
]
