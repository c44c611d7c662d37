"""The manifests of the WSSS-BED release, written or checked.

``python -m wsssbed_hub.registry.release.manifests [--check] FOLDER``

The release (github.com/clovaai/WSSS-BED) has 130 zips under names that follow from what they hold:
``VOC2012_VST_DUTS.zip`` are the saliency maps of VST trained on DUTS, ``VOC2012_EPS_VST_DUTS.zip``
the activation maps of EPS trained with them. Papers, code and licences are those of the methods;
where one of them is not known it is absent, and so are sizes and checksums, which the release does
not state.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from wsssbed_hub.artifacts.manifest import (
    Entry,
    Manifest,
    MethodCitation,
    Supervision,
    TrainedOn,
    UrlSource,
)

BASE = "https://github.com/clovaai/WSSS-BED/releases/download"
RELEASE = "WSSS-BED"
VERSION = "1.0.0"
LICENCE = (
    "Apache-2.0, as the repository clovaai/WSSS-BED states it for itself; what the authors of the "
    "method demand stands beside the method"
)

_GITHUB = "https://github.com/"
_NON_COMMERCIAL = "CC BY-NC-SA 4.0 (stated in its README)"

SOD_MODELS = {
    "dss": MethodCitation(
        name="DSS",
        paper="https://arxiv.org/abs/1611.04849",
        code=_GITHUB + "Andrew-Qibin/DSS",
        licence="MIT",
    ),
    "pfan": MethodCitation(
        name="PFAN",
        paper="https://arxiv.org/abs/1903.00179",
        code=_GITHUB
        + "CaitinZhao/cvpr2019_Pyramid-Feature-Attention-Network-for-Saliency-detection",
    ),
    "poolnet": MethodCitation(
        name="PoolNet",
        paper="https://arxiv.org/abs/1904.09569",
        code=_GITHUB + "backseason/PoolNet",
        licence="MIT",
    ),
    "vst": MethodCitation(
        name="VST", paper="https://arxiv.org/abs/2104.12099", code=_GITHUB + "nnizhang/VST"
    ),
    "deepusps": MethodCitation(name="DeepUSPS", paper="https://arxiv.org/abs/1909.13055"),
    "move": MethodCitation(
        name="MOVE",
        paper="https://arxiv.org/abs/2210.07920",
        code=_GITHUB + "adambielski/move-seg",
    ),
}
CAM_METHODS = {
    "cam": MethodCitation(
        name="CAM",
        paper="https://arxiv.org/abs/1512.04150",
        code=_GITHUB + "clovaai/WSSS-BED",
        licence="Apache-2.0",
    ),
    "oaa": MethodCitation(
        name="OAA",
        paper="Jiang et al., Integral Object Mining via Online Attention Accumulation, ICCV 2019",
        code=_GITHUB + "PengtaoJiang/OAA-PyTorch",
        licence=_NON_COMMERCIAL,
    ),
    "mcis": MethodCitation(
        name="MCIS",
        paper="Sun, Wang, Dai, Van Gool, Mining Cross-Image Semantics for Weakly Supervised "
        "Semantic Segmentation, ECCV 2020",
        code=_GITHUB + "GuoleiSun/MCIS_wsss",
    ),
    "drs": MethodCitation(
        name="DRS",
        paper="Kim, Han, Kim, Discriminative Region Suppression for Weakly-Supervised Semantic "
        "Segmentation, AAAI 2021",
        code=_GITHUB + "qjadud1994/DRS",
        licence="MIT",
    ),
    "edam": MethodCitation(
        name="EDAM",
        paper="Wu et al., Embedded Discriminative Attention Mechanism for Weakly Supervised "
        "Semantic Segmentation, CVPR 2021",
        code=_GITHUB + "allenwu97/EDAM",
    ),
    "eps": MethodCitation(
        name="EPS", paper="https://arxiv.org/abs/2105.08965", code=_GITHUB + "halbielee/EPS"
    ),
    "l2g": MethodCitation(
        name="L2G",
        paper="Jiang, Yang, Hou, Wei, L2G: A Simple Local-to-Global Knowledge Transfer Framework "
        "for Weakly Supervised Semantic Segmentation, CVPR 2022",
        code=_GITHUB + "PengtaoJiang/L2G",
        licence=_NON_COMMERCIAL,
    ),
}

# SOD datasets: name in the release, name in titles, images (None: the paper does not say).
_DATASETS = {
    "msra": ("MSRA", "MSRA-B", 5000),
    "msra-hku": ("MSRA_HKU", "MSRA-B and HKU-IS", 9447),
    "duts": ("DUTS", "DUTS", 10553),
    "coco": ("COCO", "COCO, masks of all classes", None),
    "coco20": ("COCO20", "COCO, masks of the 20 VOC classes", None),
}
_SUPERVISED = ("dss", "pfan", "poolnet", "vst")
# Which SOD model made the maps that a method's authors distribute (WSSS-BED, Tables 5 and 7).
_PAPER_MODELS = {
    "oaa": "dss",
    "drs": "poolnet",
    "edam": "poolnet",
    "eps": "pfan",
    "l2g": "poolnet",
}
_ON_COCO = ("msra", "msra-hku", "duts")  # the SOD datasets whose maps exist over coco14
_TARGETS = {"voc12": "VOC2012", "coco14": "COCO"}
_IMAGES = {"voc12": 10582, "coco14": 82081}  # that activation methods train on


class ReleasedSaliency(NamedTuple):
    """One saliency of the release: key's name, name in zips, model, and what is known of it."""

    name: str
    zip_name: str
    model: str
    title: str
    trained_on: TrainedOn
    sal_targets: tuple[str, ...]
    cam_targets: tuple[str, ...]


def saliencies() -> Iterator[ReleasedSaliency]:
    """All that the release has, whatever they are used for."""
    both, voc = ("coco14", "voc12"), ("voc12",)
    for model in _SUPERVISED:
        method = SOD_MODELS[model].name
        for dataset, (short, long, images) in _DATASETS.items():
            source = TrainedOn(dataset=dataset, images=images, supervision="pixel masks")
            targets = both if dataset in _ON_COCO else voc
            title = f"{method} trained on {long}"
            yield ReleasedSaliency(
                f"{model}-{dataset}", f"{method}_{short}", model, title, source, targets, targets
            )
    unsupervised = (("deepusps", "msra", None, voc), ("move", "duts", 10553, both))
    for model, dataset, images, cam_targets in unsupervised:
        method = SOD_MODELS[model].name
        source = TrainedOn(dataset=dataset, images=images, supervision="unsupervised")
        yield ReleasedSaliency(
            model, method, model, f"{method}, unsupervised", source, both, cam_targets
        )
    for paper, model in _PAPER_MODELS.items():
        name = CAM_METHODS[paper].name
        title = f"{SOD_MODELS[model].name}, as distributed with {name}"
        source = TrainedOn(supervision="pixel masks")
        targets = both if paper in ("eps", "l2g") else voc
        yield ReleasedSaliency(f"paper-{paper}", f"sal_{name}", model, title, source, targets, voc)


def manifests() -> Iterator[Manifest]:
    """The manifests of all keys of the release, in the order of the keys."""
    found = [*_sal(), *_cam()]
    yield from sorted(found, key=lambda manifest: manifest.key)


def _sal() -> Iterator[Manifest]:
    for one in saliencies():
        # The folder of COCO's saliency maps has another prefix than that of its activation maps.
        names = {"voc12": f"VOC2012_{one.zip_name}", "coco14": f"COCO2014_{one.zip_name}"}
        yield _manifest(
            f"sal/{one.name}",
            f"Saliency maps of {one.title}",
            SOD_MODELS[one.model],
            [one.trained_on],
            {target: f"sal_maps/{names[target]}" for target in one.sal_targets},
        )


def _cam() -> Iterator[Manifest]:
    for name in ("cam", "drs", "edam", "mcis", "oaa"):
        targets = ("coco14", "voc12") if name in ("cam", "drs") else ("voc12",)
        yield _cam_manifest(name, name, "", targets, None)
    for name in ("eps", "l2g"):
        for one in saliencies():
            key = f"{name}-{one.name}"
            yield _cam_manifest(name, key, f"_{one.zip_name}", one.cam_targets, one)


def _cam_manifest(
    method: str, name: str, suffix: str, targets: tuple[str, ...], saliency: ReleasedSaliency | None
) -> Manifest:
    card = CAM_METHODS[method]
    trained_on = [
        _labelled(target, None if len(targets) == 1 else target, "image labels")
        for target in targets
    ]
    title = f"Activation maps of {card.name}"
    if saliency is not None:
        title += f" trained with the saliency maps of {saliency.title}"
    zips = {target: f"act_maps/{_TARGETS[target]}_{card.name}{suffix}" for target in targets}
    with_ = [f"sal/{saliency.name}"] if saliency is not None else []
    return _manifest(f"cam/{name}", title, card, trained_on, zips, with_)


def _labelled(dataset: str, target: str | None, supervision: Supervision) -> TrainedOn:
    return TrainedOn(
        dataset=dataset, target=target, images=_IMAGES[dataset], supervision=supervision
    )


def _manifest(
    key: str,
    title: str,
    method: MethodCitation,
    trained_on: list[TrainedOn],
    zips: dict[str, str],
    trained_with: list[str] | None = None,
) -> Manifest:
    entries = {
        target: Entry(source=UrlSource(url=f"{BASE}/{path}.zip", release=RELEASE))
        for target, path in zips.items()
    }
    return Manifest(
        key=key,
        kind=key.partition("/")[0],  # type: ignore[arg-type]  # the model checks it
        title=title,
        method=method,
        trained_on=trained_on,
        trained_with=trained_with or [],
        licence=LICENCE,
        versions={VERSION: entries},
    )


def main(arguments: list[str]) -> int:
    """Write the manifests below FOLDER; with ``--check`` only say (exit code 1) what differs."""
    folder = Path(arguments[-1])
    wrong = 0
    for manifest in manifests():
        path = folder / f"{manifest.key}.yaml"
        text = manifest.dump()
        if arguments[0] != "--check":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            print(f"{path} is out of date. Run `make manifests`.", file=sys.stderr)
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
