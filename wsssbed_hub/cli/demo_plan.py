"""The demo's plan: the commands of the whole benchmark on ``shapes``, in order.

What every demo has comes first, what was asked for on top comes behind it, so that it can be added
to a folder whose demo is done.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

TARGET = "shapes"
SOD_DATASETS = ("shapes-small", "shapes")  # the same pictures' worth of saliency, few and many
GROUND_TRUTH = "ground-truth"
CAM = "cam/cam"
DEEPLAB = "seg-deeplabv2"
SSNET = "ssnet"


@dataclass(frozen=True)
class Scale:
    """How much of everything: options of ``data make shapes`` and of every training."""

    shapes: tuple[str, ...] = ()
    training: tuple[str, ...] = ()


FULL = Scale()
# Enough to run every part of it, too little to learn much: what CI has time for.
QUICK = Scale(("--train", "48", "--val", "24", "--sod", "32"), ("--steps", "20"))


@dataclass(frozen=True)
class SaliencyModel:
    """A stage that makes saliency maps, and their key, with ``{data}`` for the SOD dataset."""

    stage: str
    key: str

    @property
    def trained_on(self) -> dict[str, str]:
        """The keys of its maps, and what it is trained on for them: either SOD dataset, or, if its
        key names none since it learns without masks, the images of the larger one."""
        datasets = SOD_DATASETS if "{data}" in self.key else SOD_DATASETS[-1:]
        return {self.key.format(data=name): name for name in datasets}

    @property
    def best(self) -> str:
        """The key of its maps from the larger SOD dataset."""
        return list(self.trained_on)[-1]


@dataclass(frozen=True)
class ActivationMethod:
    """A stage that makes activation maps, and their key, with ``{sal}`` for the name of the
    saliency maps that it is trained with."""

    stage: str
    key: str

    @property
    def needs_saliency(self) -> bool:
        return "{sal}" in self.key

    def key_with(self, sal: str) -> str:
        """The key of its maps, trained with the saliency maps ``sal`` if with any."""
        return self.key.format(sal=Path(sal).name)


POOLNET = SaliencyModel("sod-poolnet", "sal/poolnet-{data}")
CAM_METHOD = ActivationMethod("cam-cam", CAM)


@dataclass(frozen=True)
class Step:
    """One command: what it is for, and its words after ``wsssbed-hub`` or ``python -m stages``."""

    title: str
    program: str
    words: tuple[str, ...]
    output: Path | None = None
    """The file that takes what it prints."""

    @property
    def line(self) -> str:
        """As a person would type it."""
        start = "wsssbed-hub" if self.program == "hub" else "python -m stages"
        into = "" if self.output is None else f" > {shlex.quote(str(self.output))}"
        return f"{start} {shlex.join(self.words)}{into}"

    @property
    def argv(self) -> list[str]:
        module = "wsssbed_hub" if self.program == "hub" else "stages"
        return [sys.executable, "-m", module, *self.words]


class Curves(NamedTuple):
    """The file that takes the curves of one artifact of activation maps.

    ``sal`` are the maps that the method was trained with; then the labels are made without any.
    Else there is a curve for each of the demo's saliency maps.
    """

    method: ActivationMethod
    sal: str | None
    file: Path


@dataclass(frozen=True)
class Demo:
    """The work to be done, and the folder that it is done in.

    ``models``, ``methods`` and ``networks`` (stages) come beside PoolNet, CAM and DeepLab-V2. With
    any of ``methods`` each activation map is measured with each saliency map. Without
    ``segmentation`` the labels are measured, and nothing is trained on them; with it networks are
    trained on the ground truth and on labels of CAM and the saliency maps ``labels_of``, once for
    each of ``seeds``.
    """

    folder: Path
    scale: Scale = FULL
    seed: int = 0
    models: Sequence[SaliencyModel] = ()
    methods: Sequence[ActivationMethod] = ()
    networks: Sequence[str] = ()
    ssnet: bool = False
    segmentation: bool = True
    labels_of: Sequence[str] = tuple(POOLNET.trained_on)
    seeds: Sequence[int] = ()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @property
    def trainings(self) -> dict[str, tuple[str, str]]:
        """Saliency maps by key, in order: their stage, and what it is trained on."""
        return {
            key: (model.stage, data)
            for model in (POOLNET, *self.models)
            for key, data in model.trained_on.items()
        }

    def pulled(self, key: str) -> Path:
        return self.folder / "pulled" / key

    def curves(self) -> Iterator[Curves]:
        """The files of curves, for every method; none where CAM is the only one.

        A method that is trained with saliency maps is trained with those of each model, from the
        larger SOD dataset.
        """
        folder = self.folder / "curves"
        for method in (CAM_METHOD, *self.methods) if self.methods else ():
            sals = [model.best for model in (POOLNET, *self.models)]
            for sal in sals if method.needs_saliency else (None,):
                name = Path(method.key_with(sal or "")).name
                yield Curves(method, sal, folder / f"{name}.json")

    def label_sets(self) -> dict[str, str]:
        """What the networks are trained on, the ground truth last: its name in keys, by the
        saliency maps that it comes of."""
        if not self.segmentation:
            return {}
        found = {sal: f"cam-{Path(sal).name}" for sal in self.labels_of}
        return found | {GROUND_TRUTH: GROUND_TRUTH}

    def run_folder(self, network: str, labels: str) -> Path:
        """The record of a network's trainings on the labels of that name."""
        return self.artifacts / "runs" / f"{network}-{TARGET}-{labels}"

    def steps(self) -> Iterator[Step]:
        """All of it, in order."""
        yield self._hub(
            "draw the dataset",
            *("data", "make", "shapes", *self._rooted),
            *("--seed", str(self.seed), *self.scale.shapes),
        )
        for name in SOD_DATASETS:
            yield self._saliency(POOLNET.stage, name)
        title = "train CAM on image-level labels, write activation maps"
        yield self._training(title, CAM_METHOD.stage)
        yield from self._share(*POOLNET.trained_on, CAM)
        sets = self.label_sets()
        early = [key for key in sets if key in POOLNET.trained_on or key == GROUND_TRUTH]
        yield from self._deeplab({key: sets[key] for key in early})
        for model in self.models:
            for key, name in model.trained_on.items():
                yield self._saliency(model.stage, name)
                yield from self._share(key)
        yield from self._deeplab({key: sets[key] for key in sets if key not in early})
        yield from self._matrix()
        for network in self.networks if self.segmentation else ():
            for labels in sets.values():
                yield self._network(network, labels)
        if self.ssnet:
            name = f"{SSNET}-{SOD_DATASETS[-1]}"
            title = "train SSNet for saliency and segmentation at once, write its maps and labels"
            yield self._training(title, SSNET, "--data", SOD_DATASETS[-1])
            yield from self._share(f"sal/{name}", f"label/{name}")
            yield from self._publish(f"weights/{name}")
        yield self._report()

    def _report(self) -> Step:
        shown = [("--segmentation", self._weights(name)) for name in self.label_sets().values()]
        shown += [("--sal", key) for key in self.trainings]
        if self.ssnet:
            name = f"{SSNET}-{SOD_DATASETS[-1]}"
            shown += [("--sal", f"sal/{name}"), ("--labels", f"label/{name}")]
            shown.append(("--segmentation", f"weights/{name}"))
        words = (
            *("report", "--cam", CAM, *(word for pair in shown for word in pair)),
            *("--target", TARGET, *self._rooted, *self._registry),
            *("--to", str(self.folder / "report.html"), "--json"),
        )
        return Step("compare", "hub", words, self.folder / "report.json")

    def _deeplab(self, labels: dict[str, str]) -> Iterator[Step]:
        """Labels by the saliency maps that they come of, and DeepLab-V2 on each of them."""
        made = {sal: name for sal, name in labels.items() if sal != GROUND_TRUTH}
        for sal, name in made.items():
            maps = ("--cam", str(self.pulled(CAM)), "--sal", str(self.pulled(sal)))
            yield self._stage(f"make label/{name} at the published tau", "pseudo", *maps)
        yield from self._share(*(f"label/{name}" for name in made.values()))
        for name in labels.values():
            yield self._network(DEEPLAB, name)
        yield from self._publish(*map(self._weights, labels.values()))

    def _weights(self, labels: str) -> str:
        """The key of a network trained on the labels of that name, of the first seed if several."""
        return f"weights/{DEEPLAB}-{labels}" + (f"-seed{self.seeds[0]}" if self.seeds else "")

    def _network(self, network: str, labels: str) -> Step:
        where = labels if labels == GROUND_TRUTH else str(self.pulled(f"label/{labels}"))
        name = "DeepLab-V2" if network == DEEPLAB else network
        title = f"train {name} on {labels}, score it on val"
        seeds = ("--seeds", ",".join(map(str, self.seeds))) if self.seeds else None
        return self._training(title, network, "--labels", where, seeds=seeds)

    def _matrix(self) -> Iterator[Step]:
        """Further activation maps, and the curves of all with all saliency maps."""
        for method, sal, file in self.curves():
            key = method.key_with(sal or "")
            if method != CAM_METHOD:
                title = f"train {method.stage}{f' with {sal}' if sal else ''}"
                given = ("--sal", str(self.pulled(sal))) if sal else ()
                yield self._training(f"{title}, write activation maps", method.stage, *given)
            sals = () if sal else [str(self.pulled(one)) for one in self.trainings]
            words = (
                *("curve", "--cam", str(self.artifacts / key)),
                *(word for maps in sals for word in ("--sal", maps)),
                *("--target", TARGET, *self._rooted, "--json"),
            )
            yield Step(f"measure the labels of {key} at all thresholds", "hub", words, file)

    def _saliency(self, stage: str, data: str) -> Step:
        name = "PoolNet" if stage == POOLNET.stage else stage
        title = f"train {name} on {data}, write saliency maps"
        return self._training(title, stage, "--data", data)

    def _training(
        self, title: str, name: str, *words: str, seeds: tuple[str, ...] | None = None
    ) -> Step:
        seeds = ("--seed", str(self.seed)) if seeds is None else seeds
        given = ("--recipe", "shapes", *seeds, "--deterministic")
        return self._stage(title, name, *words, last=(*given, *self.scale.training))

    def _stage(self, title: str, name: str, *words: str, last: tuple[str, ...] = ()) -> Step:
        common = ("--target", TARGET, *self._rooted, "--out", str(self.artifacts))
        return Step(title, "stage", (name, *words, *common, *last))

    def _publish(self, *keys: str) -> Iterator[Step]:
        for key in keys:
            words = ("push", str(self.artifacts / key), *self._registry)
            yield self._hub(f"publish {key}", *words)

    def _share(self, *keys: str) -> Iterator[Step]:
        yield from self._publish(*keys)
        for key in keys:
            words = ("pull", key, "--target", TARGET, "--to", str(self.pulled(key)))
            yield self._hub(f"pull {key}, verified", *words, *self._registry)

    def _hub(self, title: str, *words: str) -> Step:
        return Step(title, "hub", words)

    @property
    def _rooted(self) -> tuple[str, ...]:
        return "--data-root", str(self.data)

    @property
    def _registry(self) -> tuple[str, ...]:
        return "--registry", str(self.folder / "registry")
