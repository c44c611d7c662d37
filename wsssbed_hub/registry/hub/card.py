"""The dataset card of a key: what the Hub shows, and what its viewer and ``datasets`` read."""

from __future__ import annotations

import re
from typing import Any

import yaml

from wsssbed_hub.artifacts.manifest import Chosen, Entry, Manifest, Provenance, TrainedOn

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
    sections = [
        f"# {_plain(manifest.title)}",
        f"{_KINDS[manifest.kind]}: `{manifest.key}` of "
        "[wsssbed-hub](https://arxiv.org/abs/2404.00918).",
        _contents(manifest),
        _loading(manifest, repository),
        _method(manifest),
        _making(manifest),
        _results(manifest),
        _licence(manifest),
        "*This card is generated from `manifest.yaml` whenever a version is published.*",
    ]
    metadata = yaml.safe_dump(_metadata(manifest), sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{metadata}---\n\n" + "\n\n".join(part for part in sections if part) + "\n"


def _metadata(manifest: Manifest) -> dict[str, Any]:
    data: dict[str, Any] = {"pretty_name": manifest.title}
    if manifest.licence is not None:
        known = manifest.licence.strip().lower().replace(" ", "-")
        if known in _LICENCES:
            data["license"] = known
        else:
            slug = re.sub(r"[^a-z0-9.]+", "-", manifest.licence.lower())[:80].strip("-")
            data |= {"license": "other", "license_name": slug or "other"}
    data["tags"] = [TAG, manifest.kind, "weakly-supervised-semantic-segmentation"]
    if manifest.kind != "weights":
        data["task_categories"] = ["image-segmentation"]
        data["configs"] = [_config(chosen) for chosen in _latest(manifest) if chosen.entry.files]
    return data


def _config(chosen: Chosen) -> dict[str, Any]:
    files = sorted(file.path for file in chosen.entry.files)
    return {
        "config_name": chosen.target,
        "data_files": [{"split": SPLIT, "path": files}],
    }


def _latest(manifest: Manifest) -> list[Chosen]:
    return [manifest.choose(target) for target in manifest.targets()]


def _contents(manifest: Manifest) -> str:
    lines = ["| version | target | images | bytes | content digest |", "| --- " * 5 + "|"]
    for version, target, entry in reversed(list(manifest.entries())):
        images = "" if entry.images is None else f"{entry.images:,}"
        digest = f"`{entry.content}`" if entry.content else ""
        size = f"{entry.size:,}" if entry.files else ""
        lines.append(f"| {version} | {target} | {images} | {size} | {digest} |")
    return "## Contents\n\n" + "\n".join(lines)


def _loading(manifest: Manifest, repository: str) -> str:
    chosen = _latest(manifest)[0]
    target, version = chosen.target, chosen.version
    ways = f"```\nwsssbed-hub pull hf:{repository}@{version} --target {target}\n```"
    if manifest.kind != "weights":
        ways += (
            "\n\n```python\nimport datasets\n\n"
            f'maps = datasets.load_dataset("{repository}", "{target}", split="{SPLIT}", '
            f'revision="{version}")\n```'
        )
    return (
        "## How to load it\n\nThe first checks every byte against the digests of the manifest.\n\n"
        + ways
    )


def _method(manifest: Manifest) -> str:
    method = manifest.method
    facts = [f"- Method: {_plain(method.name)}"]
    facts += [f"- Paper: {_plain(method.paper)}"] if method.paper else []
    facts += [f"- Code: {_plain(method.code)}"] if method.code else []
    facts += [f"- Licence of the code: {_plain(method.licence)}"] if method.licence else []
    facts += [f"- Trained on: {_trained(item)}" for item in manifest.trained_on]
    facts += [f"- Trained with: `{key}`" for key in manifest.trained_with]
    return "## Method and supervision\n\n" + "\n".join(facts)


def _trained(item: TrainedOn) -> str:
    images = f", {item.images:,} images" if item.images else ""
    only = f", for the maps over {item.target}" if item.target else ""
    return f"{item.dataset or 'a dataset that is not known'}{images}; {item.supervision}{only}"


def _making(manifest: Manifest) -> str:
    parts = [
        f"### {chosen.version} over {chosen.target}\n\n{_provenance(chosen.entry.provenance)}"
        for chosen in _latest(manifest)
        if chosen.entry.provenance is not None
    ]
    return "## How it was made\n\n" + "\n\n".join(parts) if parts else ""


def _provenance(made: Provenance | None) -> str:
    if made is None:
        return ""
    known = {
        "Stage": made.stage,
        "Image": made.image and f"{made.image} {made.image_digest or ''}".strip(),
        "wsssbed-hub": " ".join(filter(None, [made.project_version, made.project_commit])),
        "Date": made.date.isoformat(),
        "Seed": None if made.seed is None else str(made.seed),
        "PyTorch": made.environment.torch,
        "GPU": made.environment.gpu,
    }
    facts = [f"- {name}: {_plain(value)}" for name, value in known.items() if value]
    for item in made.made_from:
        facts.append(f"- Made from ({item.role}): {_plain(item.key or item.file or '')}")
    command = " ".join(made.command).replace("`", "'").replace("\n", " ")
    return "\n".join([*facts, "", "```", command, "```"])


def _results(manifest: Manifest) -> str:
    lines = [line for chosen in _latest(manifest) for line in _rows(chosen.target, chosen.entry)]
    if not lines:
        return ""
    head = "| target | measure | value | split | images | tau |"
    return "## Results\n\n" + "\n".join([head, "| --- " * 6 + "|", *lines])


def _rows(target: str, entry: Entry) -> list[str]:
    rows = []
    for result in entry.results:
        tau = f"{result.threshold.tau:g} ({result.threshold.origin})" if result.threshold else ""
        measure = _plain(result.metric) + (", with CRF" if result.crf else "")
        cells = [target, measure, f"{result.value:.4f}", _plain(result.split)]
        rows.append(f"| {' | '.join(cells)} | {result.images:,} | {tau} |")
    return rows


def _licence(manifest: Manifest) -> str:
    stated = manifest.licence and _plain(manifest.licence)
    text = f"Licence of the maps: {stated}." if stated else "No licence is stated for the maps."
    if manifest.method.paper:
        text += f" If you use them, cite the method's paper: {_plain(manifest.method.paper)}"
    return "## Licence and citation\n\n" + text


def _plain(text: str) -> str:
    """Text of a manifest in one line, with nothing that Markdown or HTML would act on."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
