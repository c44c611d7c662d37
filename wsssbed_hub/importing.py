"""Anyone's folder or zip of PNGs, looked at closely and turned into a key folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsssbed_hub.errors import HubError, UsageError
from wsssbed_hub.inspection import Goal, Problem, check_lists, goal_of, look_at_all
from wsssbed_hub.keyfolder import complete
from wsssbed_hub.keys import Key, Version
from wsssbed_hub.manifest import Manifest, Method, TrainedOn
from wsssbed_hub.maps import open_artifact
from wsssbed_hub.pngs import PngFolder, PngZip
from wsssbed_hub.reader import MAP_KINDS
from wsssbed_hub.writing import write_maps

Advance = Callable[[int, int], None]  # images done, images in all


@dataclass(frozen=True)
class Card:
    """What a manifest says of maps that nobody can see from them."""

    method: Method
    trained_on: tuple[TrainedOn, ...] = ()
    trained_with: tuple[str, ...] = ()
    licence: str | None = None
    title: str | None = None


class Import:
    """The maps at ``path`` on their way to ``key`` over ``target``.

    Raises UsageError for a key without kind of maps and for what is neither folder nor zip;
    HubError for a hostile or damaged zip and for file names that are not those of the release
    layout.
    """

    def __init__(self, path: Path, key: str, target: str, data_root: Path):
        self.key = Key.parse(key)
        if self.key.kind not in MAP_KINDS:
            raise UsageError(f"{key}: only maps are imported, of kind {', '.join(MAP_KINDS)}.")
        maps = open_artifact(Path(path), kind=None if _is_key_folder(path) else self.key.kind)
        if not isinstance(maps, PngFolder | PngZip):
            raise UsageError(f"{path} is a key folder already: push it as it is.")
        self.maps: PngFolder | PngZip = maps
        self.goal: Goal = goal_of(target, data_root)

    def problems(self, progress: Advance | None = None) -> list[Problem]:
        """All that is wrong, errors first. Every map is decoded; ``progress(images, of)``."""
        class_ids = self.maps.class_ids if self.maps.kind == "cam" else None
        found = check_lists(self.maps.image_ids, self.goal, class_ids)
        found += look_at_all(self.maps, self.goal, progress).problems()
        return sorted(found, key=lambda problem: problem.severity)  # error before warning

    def write(
        self, folder: Path, card: Card, *, version: str = "1.0.0", progress: Advance | None = None
    ) -> Manifest:
        """The maps as a version of the key in ``folder``; goes on where a killed run stopped.

        Raises HubError if the folder holds another key, or the version with other maps.
        """
        number = self.key.version or Version.parse(version)
        total, done = len(self.maps), 0

        def advance(images: int) -> None:
            nonlocal done
            done += images
            if progress is not None:
                progress(done, total)

        settings = {"imported": self.maps.digest()}
        written = write_maps(
            folder,
            self.maps.kind,
            self.maps.image_ids,
            self.maps.read,
            settings=settings,
            progress=advance,
        )
        return complete(
            folder,
            written,
            key=str(self.key.unversioned),
            target=self.goal.name,
            version=str(number),
            title=card.title or _title(self.maps.kind, card),
            method=card.method,
            trained_on=card.trained_on,
            trained_with=card.trained_with,
            licence=card.licence,
        )


def _is_key_folder(path: Path) -> bool:
    return (Path(path) / "manifest.yaml").exists()


def _title(kind: str, card: Card) -> str:
    what = {"sal": "Saliency maps", "cam": "Activation maps", "label": "Pseudo labels"}[kind]
    trained = [item for item in card.trained_on if item.supervision != "none"]
    datasets = [item.dataset for item in trained if item.dataset]
    on = f" trained on {' and '.join(datasets)}" if datasets else ""
    return f"{what} of {card.method.name}{on}"


def parse_trained_on(texts: Sequence[str]) -> tuple[TrainedOn, ...]:
    """``duts:pixel masks`` and the like: a dataset, and what of it supervised the training.

    Raises UsageError for anything else.
    """
    from pydantic import ValidationError

    found = []
    for text in texts:
        dataset, _, supervision = text.partition(":")
        try:
            found.append(
                TrainedOn.model_validate({"dataset": dataset, "supervision": supervision.strip()})
            )
        except ValidationError:
            raise UsageError(
                f"{text!r} does not say what the method was trained on. Write dataset:supervision, "
                "such as 'duts:pixel masks'; supervision is 'pixel masks', 'image labels', "
                "'self-supervised', 'unsupervised' or 'none'."
            ) from None
    return tuple(found)


def refuse(problems: Sequence[Problem], path: Path) -> None:
    """Raises HubError if there are errors among the problems."""
    errors = sum(problem.severity == "error" for problem in problems)
    if errors:
        raise HubError(
            f"{path} has {errors} error{'s' if errors > 1 else ''}: nothing was written. Mend "
            f"{'them' if errors > 1 else 'it'} and run it again."
        )
