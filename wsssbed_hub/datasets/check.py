"""`data check`: what of a dataset is there, what is missing, and where to get it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wsssbed_hub.datasets.base import Finding, NotThere, Source, TargetSpec
from wsssbed_hub.datasets.catalog import SOD_DATASETS, TARGETS
from wsssbed_hub.datasets.sod import SodSpec, inspect_sod, sod_is_there
from wsssbed_hub.utils.errors import HubError, UsageError, did_you_mean
from wsssbed_hub.utils.files import Progress


@dataclass(frozen=True)
class Report:
    """What was found of one dataset. ``ok``: all of it is there, in the published numbers."""

    name: str
    title: str
    data_root: str
    ok: bool
    findings: tuple[Finding, ...]
    sources: tuple[Source, ...]
    licence: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check(
    name: str, data_root: Path, *, deep: bool = False, progress: Progress | None = None
) -> Report:
    """Looks at the files of a target or a SOD dataset, or of both where they share a name.

    ``deep`` also opens every file: sizes of images and masks, labels, annotations. Problems of the
    files are findings, not errors. Raises UsageError for an unknown name.
    """
    data_root = Path(data_root)
    target, sod = TARGETS.get(name), SOD_DATASETS.get(name)
    if target is None and sod is None:
        known = dict.fromkeys((*TARGETS, *SOD_DATASETS))
        raise UsageError(
            f"There is no dataset {name!r}.{did_you_mean(name, known)} "
            f"Datasets are {', '.join(known)}."
        )
    findings: list[Finding] = []
    if target is not None:
        findings += _inspect_target(target, data_root, deep, progress)
    if sod is not None:
        findings += inspect_sod(sod, data_root, deep=deep, progress=progress)
    specs = [spec for spec in (target, sod) if spec is not None]
    return Report(
        name=name,
        title=specs[0].title,
        data_root=str(data_root),
        ok=all(finding.ok for finding in findings),
        findings=tuple(findings),
        sources=tuple(dict.fromkeys(source for spec in specs for source in spec.sources)),
        licence=specs[0].licence,
    )


def _inspect_target(
    spec: TargetSpec, data_root: Path, deep: bool, progress: Progress | None
) -> Iterable[Finding]:
    try:
        target = spec.open(spec, data_root)
    except NotThere as error:
        return [error.finding(f"{spec.name}: images")]
    return target.inspect(deep=deep, progress=progress)


def is_there(spec: TargetSpec | SodSpec, data_root: Path) -> bool:
    """Whether the dataset can be opened; whether it is complete, ``check`` tells."""
    if isinstance(spec, SodSpec):
        return sod_is_there(spec, Path(data_root))
    try:
        spec.open(spec, Path(data_root))
    except HubError:
        return False
    return True
