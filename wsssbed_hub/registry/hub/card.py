"""The dataset card of a key: what the Hub shows, and what its viewer and ``datasets`` read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsssbed_hub.artifacts.manifest import Chosen, Manifest, Provenance

if TYPE_CHECKING:
    from huggingface_hub import DatasetCardData

TAG = "wsssbed-hub"
SPLIT = "train"  # the only one: maps are not split, and this is what ``datasets`` calls the whole

_LICENCES = {  # those that the Hub knows by an identifier of its own, as people write them
    *("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nd-4.0"),
    *("cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "bsd-2-clause", "bsd-3-clause", "gpl-2.0", "gpl-3.0"),
    *("agpl-3.0", "lgpl-3.0", "mpl-2.0", "unlicense"),
}
_KINDS = {
    "sal": "Saliency maps, one 8-bit grey image per picture",
    "cam": "Activation maps, one 8-bit grey image per picture and present class",
    "label": "Pseudo labels: 0 is background, c + 1 is class c, 255 is ignored",
    "weights": "Weights of a network",
}


def dataset_card(manifest: Manifest, repository: str) -> str:
    """README.md of ``<namespace>/<name>`` on the Hub, made from nothing but the manifest.

    It has one viewer config per target, which shows the latest version's files. What the manifest
    does not know is not in it.
    """
    from huggingface_hub import DatasetCard

    latest = [manifest.choose(target) for target in manifest.targets()]
    card = DatasetCard.from_template(
        _metadata(manifest, latest),
        template_path=str(Path(__file__).with_name("card.md.j2")),
        manifest=manifest,
        latest=latest,
        repository=repository,
        kind=_KINDS[manifest.kind],
        split=SPLIT,
        facts=_facts,
        plain=_plain,
    )
    return f"{card}\n"


def _metadata(manifest: Manifest, latest: list[Chosen]) -> DatasetCardData:
    from huggingface_hub import DatasetCardData

    data: dict[str, Any] = {}
    if manifest.licence is not None:
        known = manifest.licence.strip().lower().replace(" ", "-")
        if known in _LICENCES:
            data["license"] = known
        else:
            slug = re.sub(r"[^a-z0-9.]+", "-", manifest.licence.lower())[:80].strip("-")
            data |= {"license": "other", "license_name": slug or "other"}
    if manifest.kind != "weights":
        data["task_categories"] = ["image-segmentation"]
        data["configs"] = [_config(chosen) for chosen in latest if chosen.entry.files]
    tags = [TAG, manifest.kind, "weakly-supervised-semantic-segmentation"]
    return DatasetCardData(pretty_name=manifest.title, tags=tags, **data)


def _config(chosen: Chosen) -> dict[str, Any]:
    files = sorted(file.path for file in chosen.entry.files)
    return {"config_name": chosen.target, "data_files": [{"split": SPLIT, "path": files}]}


def _facts(made: Provenance) -> list[tuple[str, str]]:
    """Known facts of how an entry was made, but for the command."""
    known = {
        "Stage": made.stage,
        "Image": made.image and f"{made.image} {made.image_digest or ''}".strip(),
        "wsssbed-hub": " ".join(filter(None, [made.project_version, made.project_commit])),
        "Date": made.date.isoformat(),
        "Seed": None if made.seed is None else str(made.seed),
        "PyTorch": made.environment.torch,
        "GPU": made.environment.gpu,
    }
    sources = [(f"Made from ({item.role})", item.key or item.file) for item in made.made_from]
    return [(name, value) for name, value in [*known.items(), *sources] if value]


def _plain(text: str) -> str:
    """Text of a manifest in one line, with nothing that Markdown or HTML would act on."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
