"""The targets and SOD datasets that are known, and opening one by its name.

Numbers of images are those of the papers. Folders are those of the authors' archives first, then
others in which copies circulate.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from wsssbed_hub.datasets.base import DownloadSource, Target, TargetSpec
from wsssbed_hub.datasets.coco import COCO_CLASSES, COCO_SPLITS, open_coco
from wsssbed_hub.datasets.shapes.objects import CLASSES as SHAPES
from wsssbed_hub.datasets.sod import Layout, SodDataset, SodSpec, open_sod, sod_images
from wsssbed_hub.datasets.sod_coco import InstanceLayout
from wsssbed_hub.datasets.voc import SPLITS, VOC_CLASSES, open_voc
from wsssbed_hub.utils.errors import HubError, UsageError, did_you_mean

_DRAW = (DownloadSource("synthetic, drawn by", "wsssbed-hub data make shapes"),)

VOC12 = TargetSpec(
    name="voc12",
    title="PASCAL VOC 2012 segmentation, with the further masks of SBD",
    classes=VOC_CLASSES,
    splits=SPLITS,
    counts={"train_aug": 10582, "train": 1464, "val": 1449},
    sources=(
        DownloadSource(
            "images, annotations, masks of train and val (VOCtrainval_11-May-2012.tar)",
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        ),
        DownloadSource(
            "masks and lists of train_aug (SBD, benchmark.tgz)",
            "http://home.bharathh.info/pubs/codes/SBD/download.html",
        ),
        DownloadSource(
            "or the same masks as PNG (SegmentationClassAug.zip, linked there), with a list",
            "https://github.com/DrSleep/tensorflow-deeplab-resnet",
        ),
    ),
    licence="images: Flickr terms of use; annotations: not stated",
    paper="https://doi.org/10.1007/s11263-014-0733-5",
    # benchmark_RELEASE is what SBD's archive unpacks to; torchvision moves its content up.
    open=open_voc(
        ("VOCdevkit/VOC2012", "VOC2012"),
        ("benchmark_RELEASE/dataset", "SBD", "sbd", "SBD/benchmark_RELEASE/dataset"),
    ),
)
# The archives have no folder of their own around train2014, val2014 and annotations.
_COCO_2014 = ("coco", "COCO", "coco2014", "")
_COCO_2017 = ("coco", "COCO", "coco2017", "")
_COCO_ZIPS = "http://images.cocodataset.org/"
_COCO_LICENCE = "images: Flickr terms of use; annotations: CC BY 4.0"
_COCO_PAPER = "https://arxiv.org/abs/1405.0312"


def _coco_zips(*names: str) -> tuple[DownloadSource, ...]:
    return tuple(
        DownloadSource(f"{name.partition('/')[2]}, unpacked in coco", f"{_COCO_ZIPS}{name}")
        for name in names
    )


COCO14 = TargetSpec(
    name="coco14",
    title="MS COCO 2014, classes of its instances",
    classes=COCO_CLASSES,
    splits=COCO_SPLITS,
    counts={"train": 82081, "val": 40137},
    sources=_coco_zips(
        "zips/train2014.zip", "zips/val2014.zip", "annotations/annotations_trainval2014.zip"
    ),
    licence=_COCO_LICENCE,
    paper=_COCO_PAPER,
    open=open_coco(_COCO_2014),
)
SHAPES_TARGET = TargetSpec(
    name="shapes",
    title="Synthetic pictures of six shapes, for demos and tests",
    classes=tuple(kind.name for kind in SHAPES),
    splits=SPLITS,
    sources=_DRAW,
    licence="Apache-2.0",
    open=open_voc(("shapes/VOCdevkit/VOC2012",)),
)
SHAPES_COCO = TargetSpec(
    name="shapes-coco",
    title="The pictures of shapes in the layout of COCO 2014",
    classes=SHAPES_TARGET.classes,
    splits=COCO_SPLITS,
    sources=_DRAW,
    licence=SHAPES_TARGET.licence,
    open=open_coco(("shapes/coco",)),
)
TARGETS = {spec.name: spec for spec in (VOC12, COCO14, SHAPES_TARGET, SHAPES_COCO)}


def _duts(part: str) -> tuple[Layout, ...]:
    inner = (f"{part}-Image", f"{part}-Mask")
    roots = (part, f"DUTS/{part}")
    return (
        *(Layout(f"{root}/{inner[0]}", f"{root}/{inner[1]}") for root in roots),
        Layout(f"{part}/Imgs", f"{part}/Imgs"),
    )


def _folders(root: str, *pairs: tuple[str, str]) -> tuple[Layout, ...]:
    """Layouts below ``root``, and those in which evaluation packages of saliency papers come:
    images and masks side by side."""
    own = tuple(Layout(f"{root}/{images}", f"{root}/{masks}") for images, masks in pairs)
    return (*own, Layout(f"{root}/Imgs", f"{root}/Imgs"))


_DUTS_SITE = "http://saliencydetection.net/duts/"
_DUTS_LICENCE = "free for academic research"

DUTS = SodSpec(
    name="duts",
    title="DUTS-TR, the training images of DUTS",
    sources=(DownloadSource("DUTS-TR.zip", _DUTS_SITE),),
    layouts=_duts("DUTS-TR"),
    count=10553,
    licence=_DUTS_LICENCE,
)
DUTS_TE = SodSpec(
    name="duts-te",
    title="DUTS-TE, the test images of DUTS",
    sources=(DownloadSource("DUTS-TE.zip", _DUTS_SITE),),
    layouts=_duts("DUTS-TE"),
    count=5019,
    licence=_DUTS_LICENCE,
)
MSRA = SodSpec(
    name="msra",
    title="MSRA-B with the pixel masks of DRFI",
    sources=(DownloadSource("MSRA-B.zip", "https://mmcheng.net/msra10k/"),),
    # The archive has JPEGs and PNGs side by side in MSRA-B; the others are common copies.
    layouts=(
        *_folders("MSRA-B", ("imgs", "gt"), ("image", "annotation"), ("images", "masks")),
        Layout("MSRA-B", "MSRA-B"),
    ),
    count=5000,
    paper="https://arxiv.org/abs/1410.5926",
)
HKU_IS = SodSpec(
    name="hku-is",
    title="HKU-IS, all images",
    sources=(
        DownloadSource("HKU-IS.rar", "https://i.cs.hku.hk/~yzyu/research/deep_saliency.html"),
    ),
    layouts=_folders("HKU-IS", ("imgs", "gt")),
    count=4447,
    paper="https://arxiv.org/abs/1503.08663",
)
MSRA_HKU = SodSpec(
    name="msra-hku",
    title="MSRA-B and HKU-IS together",
    sources=(*MSRA.sources, *HKU_IS.sources),
    count=9447,
    parts=(MSRA, HKU_IS),
)
ECSSD = SodSpec(
    name="ecssd",
    title="ECSSD",
    sources=(
        DownloadSource(
            "images.zip and ground_truth_mask.zip, unpacked in ECSSD",
            "https://www.cse.cuhk.edu.hk/leojia/projects/hsaliency/dataset.html",
        ),
    ),
    layouts=_folders("ECSSD", ("images", "ground_truth_mask")),
    count=1000,
    paper="https://arxiv.org/abs/1408.5418",
)
_PASCAL = ("datasets/imgs/pascal", "datasets/masks/pascal")
PASCAL_S = SodSpec(
    name="pascal-s",
    title="PASCAL-S",
    sources=(
        DownloadSource("salObj.zip, unpacked in PASCAL-S", "http://cbs.ic.gatech.edu/salobj/"),
    ),
    # salObj.zip has no folder of its own around datasets/.
    layouts=(
        *_folders("PASCAL-S", _PASCAL),
        *_folders("salObj", _PASCAL),
        Layout(*_PASCAL),
        Layout("PASCALS/Imgs", "PASCALS/Imgs"),
    ),
    count=850,
    paper="https://arxiv.org/abs/1406.2807",
)
SOD = SodSpec(
    name="sod",
    title="SOD, 300 images of the Berkeley segmentation dataset",
    # Its authors give outlines as .mat and no images. The binary masks that papers score with
    # come in evaluation packages, as SOD/Imgs; the other folders are a guess at further copies.
    sources=(
        DownloadSource(
            "outlines, by the authors",
            "https://www.elderlab.yorku.ca/resources/salient-objects-dataset-sod/",
        ),
        DownloadSource(
            "images and binary masks, SOD/Imgs in the data for testing that PoolNet links to",
            "https://github.com/backseason/PoolNet",
        ),
    ),
    layouts=_folders("SOD", ("images", "masks"), ("images", "ground_truth"), ("imgs", "gt")),
    count=300,
)


# VOC's classes under the names that COCO gives them.
_VOC_IN_COCO = (
    "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorcycle", "person", "potted plant", "sheep", "couch",
    "train", "tv",
)  # fmt: skip


def _coco_sod(name: str, title: str, classes: tuple[str, ...] | None) -> SodSpec:
    """COCO's training images of 2017; how many of them WSSS-BED took, it does not say."""
    return SodSpec(
        name=name,
        title=title,
        sources=_coco_zips("zips/train2017.zip", "annotations/annotations_trainval2017.zip"),
        instances=InstanceLayout(_COCO_2017, "train2017", classes=classes),
        licence=_COCO_LICENCE,
        paper=_COCO_PAPER,
    )


def _drawn(name: str, folder: str, part: str, title: str) -> SodSpec:
    layout = Layout(f"{folder}/{part}/{part}-Image", f"{folder}/{part}/{part}-Mask")
    return SodSpec(name=name, title=title, sources=_DRAW, layouts=(layout,), licence="Apache-2.0")


SOD_DATASETS = {
    spec.name: spec
    for spec in (
        DUTS,
        MSRA,
        MSRA_HKU,
        _coco_sod("coco", "COCO 2017, instances of all classes", None),
        _coco_sod("coco20", "COCO 2017, instances of the 20 VOC classes", _VOC_IN_COCO),
        _drawn("shapes", "shapes", "DUTS-TR", "Synthetic pictures for training"),
        _drawn("shapes-small", "shapes-small", "DUTS-TR", "A few simple synthetic pictures"),
        DUTS_TE,
        HKU_IS,
        ECSSD,
        PASCAL_S,
        SOD,
        _drawn("shapes-te", "shapes", "DUTS-TE", "Synthetic pictures for testing"),
        SodSpec(
            name="shapes-coco",
            title="The training pictures of shapes, things of a class",
            sources=_DRAW,
            instances=InstanceLayout(("shapes/coco",), "train2014", "COCO_train2014_"),
            licence="Apache-2.0",
        ),
    )
}


def find_target(name: str, data_root: Path) -> TargetSpec | None:
    """The target called ``name``: a published one, or a person's own that the file
    ``<name>.yaml`` below ``data_root`` describes (see ``own``). None if there is neither.

    Raises HubError for a file that does not describe a target.
    """
    if name in TARGETS:
        return TARGETS[name]
    path = Path(data_root) / f"{name}.yaml"
    if Path(name).name != name or not path.is_file():
        return None
    from wsssbed_hub.datasets.own import read_description

    return read_description(path)


def own_targets(data_root: Path) -> list[TargetSpec]:
    """People's own targets that are described below ``data_root``; other YAML files are none."""
    found = []
    for path in sorted(Path(data_root).glob("*.yaml")):
        with suppress(HubError):
            spec = find_target(path.stem, data_root)
            if spec is not None and path.stem not in TARGETS:
                found.append(spec)
    return found


def open_target(name: str, data_root: Path) -> Target:
    """The target called ``name`` (see ``find_target``), with its files below ``data_root``.

    Raises UsageError for an unknown name; HubError saying what was looked for and where to get it
    if the files are not there.
    """
    spec = find_target(name, data_root)
    if spec is None:
        raise UsageError(
            f"There is no target {name!r}.{did_you_mean(name, TARGETS)} Targets are "
            f"{', '.join(TARGETS)}, and your own NAME that {Path(data_root) / 'NAME.yaml'} "
            "describes."
        )
    return spec.open(spec, Path(data_root))


def open_sod_dataset(name: str, data_root: Path) -> SodDataset:
    """The SOD dataset called ``name``, with its files below ``data_root``.

    Raises UsageError for an unknown name; HubError if the files are not there, and for an image
    without mask or a mask without image.
    """
    return open_sod(_sod_spec(name), Path(data_root))


def open_sod_images(name: str, data_root: Path) -> dict[str, Path]:
    """The images of a SOD dataset by id, for which no masks are needed. Raises as above."""
    return sod_images(_sod_spec(name), Path(data_root))


def _sod_spec(name: str) -> SodSpec:
    if name not in SOD_DATASETS:
        raise UsageError(
            f"There is no SOD dataset {name!r}.{did_you_mean(name, SOD_DATASETS)} "
            f"SOD datasets are {', '.join(SOD_DATASETS)}."
        )
    return SOD_DATASETS[name]
