"""Finding artifacts: one row for each key and target, filters, and a search in words.

The saliency of an artifact, which ``--sod`` asks for, is for saliency maps their own name, for
activation maps the saliency that they were trained with, and for labels and weights that of
whatever they were made from, as far as the manifests at hand say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from wsssbed_hub.artifacts.keys import KINDS, Key
from wsssbed_hub.artifacts.lineage import trace
from wsssbed_hub.artifacts.manifest import Chosen, Manifest, Supervision
from wsssbed_hub.evaluation.published import PUBLISHED, PublishedLabels, method_of
from wsssbed_hub.utils.errors import UsageError, did_you_mean

SUPERVISIONS: tuple[str, ...] = get_args(Supervision)
_PAPER = "paper-"  # sal/paper-eps: maps as a paper's authors distribute them
_SOD_STAGE = "sod-"

# How much it says that a word stands there: the whole key, a part of it, the method, and so on.
_WHOLE, _PART, _KEY, _METHOD, _TITLE, _FACT, _PAPER_TEXT = 100, 50, 40, 30, 20, 10, 5


class Row(NamedTuple):
    """One key over one target, at its latest version.

    ``size`` is in bytes, None is not known; ``published``, of activation maps alone, says how
    labels were made of them.
    """

    key: str
    kind: str
    version: str
    target: str
    title: str
    method: str
    paper: str | None
    saliency: list[str]
    trained_on: list[str | None]
    supervision: list[str]
    images: int | None
    size: int | None
    published: PublishedLabels | None


@dataclass(frozen=True)
class Found:
    """A row and what it is found by."""

    row: Row
    sods: frozenset[str]
    """Names, SOD models and SOD datasets of its saliency."""
    methods: frozenset[str]
    """Its method, and the method of the activation maps that it was made from."""


@dataclass(frozen=True)
class Filters:
    """Conditions on artifacts; None is anything. Capitals do not matter.

    Raises UsageError for a kind or a supervision that there is not.
    """

    kind: str | None = None
    target: str | None = None
    sod: str | None = None
    method: str | None = None
    supervision: str | None = None

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in KINDS:
            raise UsageError(f"There is no kind {self.kind!r}. Kinds are {', '.join(KINDS)}.")
        if self.supervision is not None and _plain(self.supervision) not in _PLAIN_SUPERVISIONS:
            known = ", ".join(map(repr, SUPERVISIONS))
            raise UsageError(f"There is no supervision {self.supervision!r}. There are {known}.")

    def keeps(self, found: Found) -> bool:
        """Whether ``found`` is what is asked for."""
        row = found.row
        return (
            self.kind in (None, row.kind)
            and (self.target is None or self.target.lower() == row.target)
            and (self.sod is None or self.sod.lower() in found.sods)
            and (self.method is None or _plain(self.method) in found.methods)
            and (
                self.supervision is None or _plain(self.supervision) in map(_plain, row.supervision)
            )
        )

    def __str__(self) -> str:
        given = {name: value for name, value in vars(self).items() if value is not None}
        return ", ".join(f"--{name} {value}" for name, value in given.items())

    def help(self, found: Sequence[Found]) -> str:
        """Lists values that can be asked for, where nothing of ``found`` meets the conditions."""
        known = {
            "target": {one.row.target for one in found},
            "sod": {name for one in found for name in one.sods},
            "method": {one.row.method for one in found},
        }
        said = []
        for name, values in known.items():
            wanted = getattr(self, name)
            if wanted is None or _plain(wanted) in map(_plain, values):
                continue
            near = did_you_mean(wanted.lower(), [value.lower() for value in values])
            said.append(near or f" For --{name} there is {', '.join(sorted(values)) or 'nothing'}.")
        return "".join(said)


def find_all(manifests: Iterable[Manifest]) -> list[Found]:
    """A row for each key and target, ordered by key and target."""
    known = {manifest.key: manifest for manifest in manifests}
    return [
        _found(known, known[key], known[key].choose(target))
        for key in sorted(known)
        for target in known[key].targets()
    ]


def search(found: Sequence[Found], words: Sequence[str]) -> list[Found]:
    """Those of ``found`` in which every one of ``words`` stands somewhere, the best first.

    Looked at are key, title, method, paper, datasets, target, saliency and supervision. A word in
    the key counts most; among equals the order stays.
    """
    wanted = [word.lower() for text in words for word in text.split()]
    ranked = []
    for one in found:
        scores = [_score(one, word) for word in wanted]
        if all(scores):
            ranked.append((-sum(scores), one))
    return [one for _, one in sorted(ranked, key=lambda pair: pair[0])]


def explain(found: Sequence[Found], words: Sequence[str]) -> str:
    """Why ``search`` gives nothing: the words that stand nowhere, with those that look alike."""
    wanted = [word.lower() for text in words for word in text.split()]
    counts = {word: sum(bool(_score(one, word)) for one in found) for word in wanted}
    nowhere = [word for word, count in counts.items() if not count]
    if nowhere:
        known = {name for one in found for name in _vocabulary(one)}
        return " ".join(f"Nothing has {word!r}.{did_you_mean(word, known)}" for word in nowhere)
    alone = ", ".join(f"{word!r} {count:,}" for word, count in counts.items())
    return f"Nothing has all of these words. Artifacts with each: {alone}."


def _found(known: dict[str, Manifest], manifest: Manifest, chosen: Chosen) -> Found:
    version, target, entry = chosen

    def find(key: Key) -> Manifest | None:
        return known.get(str(key.unversioned))

    lineage = trace(manifest, chosen, find)
    keys = list(dict.fromkeys(one.key.unversioned for one in lineage.walk() if one.key))
    saliencies = [key for key in keys if _is_saliency(key)]
    names = [key.name.removeprefix(_SOD_STAGE) for key in saliencies]
    made_from = [find(key) for key in keys if key.kind == "cam"]
    methods = [manifest.method.name, *(cam.method.name for cam in made_from if cam is not None)]
    items = [item for item in manifest.trained_on if item.target in (None, target)]
    row = Row(
        key=manifest.key,
        kind=manifest.kind,
        version=str(version),
        target=target,
        title=manifest.title,
        method=manifest.method.name,
        paper=manifest.method.paper,
        saliency=list(dict.fromkeys(names)),
        trained_on=[item.dataset for item in items],
        supervision=list(dict.fromkeys(item.supervision for item in items)),
        images=entry.images,
        size=entry.size if entry.files else None,
        published=PUBLISHED.get(method_of(manifest.key)) if manifest.kind == "cam" else None,
    )
    sods = frozenset(name for key in saliencies for name in _names(key, find(key)))
    return Found(row, sods, frozenset(map(_plain, methods)))


def _names(key: Key, manifest: Manifest | None) -> set[str]:
    """Names of a saliency: its own, SOD model and SOD datasets."""
    name = key.name.removeprefix(_SOD_STAGE) if key.kind == "weights" else key.name
    model, _, dataset = ("", "", "") if name.startswith(_PAPER) else name.partition("-")
    names = {name, model, dataset}
    if manifest is not None:
        names.add(manifest.method.name.lower())
        names |= {item.dataset for item in manifest.trained_on if item.dataset}
    return names - {""}


def _is_saliency(key: Key) -> bool:
    return key.kind == "sal" or (key.kind == "weights" and key.name.startswith(_SOD_STAGE))


def _score(found: Found, word: str) -> int:
    """How much it says that ``word`` stands in ``found``; 0 if it does not."""
    row = found.row
    if word in (row.key, row.key.partition("/")[2]):
        return _WHOLE
    if word in re.split(r"[/-]", row.key):
        return _PART
    facts = [*found.sods, *row.supervision, row.target, *filter(None, row.trained_on)]
    places: list[tuple[int, Iterable[str]]] = [
        (_KEY, [row.key]),
        (_METHOD, [row.method]),
        (_TITLE, [row.title]),
        (_FACT, facts),
        (_PAPER_TEXT, [row.paper or ""]),
    ]
    return next((score for score, texts in places if any(word in t.lower() for t in texts)), 0)


def _vocabulary(found: Found) -> set[str]:
    row = found.row
    texts = [row.title, row.method, row.paper or "", row.target, *row.supervision, *found.sods]
    words = {word for text in texts for word in re.findall(r"\w[\w-]+", text.lower())}
    return words | {row.key, row.key.partition("/")[2], *re.split(r"[/-]", row.key)}


def _plain(text: Any) -> str:
    return str(text).lower().replace("-", " ").replace("_", " ").strip()


_PLAIN_SUPERVISIONS = {_plain(name) for name in SUPERVISIONS}
