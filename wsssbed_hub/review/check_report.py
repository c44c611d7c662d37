"""The findings of `check` as Markdown for a pull request, with pictures beside it.

GitHub shows no pictures in a comment that are part of its text (``data:``) and none of a run's
artifacts. So the pictures are files beside the report: a table and a list of names stand without
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsssbed_hub.evaluation.inspect import Problem
from wsssbed_hub.report import Report, curves_png, markdown
from wsssbed_hub.report.comparison import compare
from wsssbed_hub.report.text import code, plain
from wsssbed_hub.review.gallery import gallery
from wsssbed_hub.review.prove import Proof
from wsssbed_hub.review.recompute import NotCheckable
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import disk_errors, write_whole
from wsssbed_hub.utils.text import count, printable

_SIGNS = {"proved": "proved", "failed": "**FAILED**", "not checked": "not checked"}
_SCORED = ("mae", "max_f", "s_measure")


@dataclass
class Checked:
    """One manifest, what is wrong with it, and what was proved of its entries."""

    path: Path
    problems: list[Problem] = field(default_factory=list)
    proofs: list[Proof] = field(default_factory=list)

    @property
    def errors(self) -> int:
        return sum(one.severity == "error" for one in self.problems)

    @property
    def unchecked(self) -> list[str]:
        return [text for proof in self.proofs for text in proof.unchecked()]


def write(path: Path, checked: Sequence[Checked]) -> list[Path]:
    """The report at ``path`` and its pictures, ``<name>-….png`` in the same folder; all paths."""
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures = _Pictures(path)
        lines = [line for part in _lines(checked, pictures) for line in (part, "")]
        write_whole(path, ("\n".join(lines).rstrip() + "\n").encode())
    return [path, *pictures.written]


def sentence(checked: Sequence[Checked]) -> str:
    """``2 manifests checked, 1 error, 3 claims not checked``."""
    errors, unchecked = sum(c.errors for c in checked), sum(len(c.unchecked) for c in checked)
    wrong = count(errors, "error") if errors else "no errors"
    said = f"{count(len(checked), 'manifest')} checked, {wrong}"
    return f"{said}, {count(unchecked, 'claim')} not checked" if unchecked else said


class _Pictures:
    """PNG files beside the report, named after what they show."""

    def __init__(self, report: Path):
        self.report = report
        self.written: list[Path] = []

    def add(self, proof: Proof, what: str, data: bytes) -> str:
        """Writes one; the Markdown that shows it."""
        repository = proof.manifest.parsed_key.repository
        parts = (self.report.stem, repository, proof.chosen.target, str(proof.chosen.version), what)
        path = self.report.with_name("-".join(parts) + ".png")
        write_whole(path, data)
        self.written.append(path)
        return f"![{what}]({path.name})"


def _lines(checked: Sequence[Checked], pictures: _Pictures) -> Iterator[str]:
    yield f"**{sentence(checked)}.**"
    for one in checked:
        yield f"## {code(printable(str(one.path)))}"
        if one.problems:
            yield "\n".join(f"- {p.severity}: {plain(printable(str(p)))}" for p in one.problems)
        for proof in one.proofs:
            yield from _proof(proof, pictures)
        if not one.problems and not one.proofs:
            yield "Nothing is wrong with it; its files were not fetched."


def _proof(proof: Proof, pictures: _Pictures) -> Iterator[str]:
    yield f"### {code(f'{proof.manifest.key}@{proof.chosen.version}')} over {proof.chosen.target}"
    rows = ["| claim | | |", "| :-- | :-- | :-- |"]
    for claim in proof.sorted_claims():
        cells = (_cell(claim.what), _SIGNS[claim.outcome], _cell(claim.detail))
        rows.append(f"| {' | '.join(cells)} |")
    yield "\n".join(rows)
    if proof.maps is None or proof.expected is None or proof.again is None:
        return
    try:
        yield from _scores(proof, pictures)
    except (NotCheckable, HubError) as reason:
        yield f"No scores: {plain(printable(str(reason)))}"
    sheet = pictures.add(proof, "gallery", gallery(proof.maps, proof.expected, proof.problems))
    images = "" if proof.expected.target else " (the images of the target are not at hand)"
    yield f"Gallery{images}, what is suspicious first: {code(pictures.written[-1].name)}"
    yield sheet


def _cell(text: str) -> str:
    return plain(printable(text))


def _scores(proof: Proof, pictures: _Pictures) -> Iterator[str]:
    """Measures of the maps on a split whose ground truth is at hand."""
    split = _split(proof)
    again = proof.again
    assert again is not None
    where = f"{proof.chosen.target} {split}, {len(again.truth(split).image_ids):,} images"
    if proof.manifest.kind == "cam":
        yield f"Labels made from them, on {where}:"
        yield from _curves(proof, split, pictures)
    elif proof.manifest.kind == "label":
        score = again.labels(split)
        yield f"mIoU on {where}: {_percent(score.mean_iou())}; coverage {_percent(score.coverage)}"
        names = ("background", *again.target.classes)
        heads = " | ".join(_cell(name) for name in names)
        values = " | ".join(_percent(float(value)) for value in score.class_iou)
        yield f"| {heads} |\n|{' --: |' * len(names)}\n| {values} |"
    else:
        found = again.saliency(split)
        measures = "; ".join(f"{name} {found[name]:.4f}" for name in _SCORED)
        yield f"Against the objects of {where}: {plain(measures)}"


def _split(proof: Proof) -> str:
    """The first split with a ground truth that the maps cover, train if it can be. Raises
    NotCheckable."""
    again, maps = proof.again, proof.maps
    assert again is not None
    assert maps is not None
    have, reason = set(maps.image_ids), NotCheckable("there is no ground truth")
    for split in sorted(again.target.splits, key=lambda name: name != "train"):
        try:
            if set(again.truth(split).image_ids) <= have:
                return split
        except NotCheckable as error:
            reason = error
    raise reason


def _curves(proof: Proof, split: str, pictures: _Pictures) -> Iterator[str]:
    """The curve of activation maps, with each saliency map that the manifest names."""
    again = proof.again
    assert again is not None
    assert proof.maps is not None
    sals, missing = [], []
    for key in _partners(proof):
        try:
            sals.append(again.partner(key))
        except NotCheckable as error:
            missing.append(str(error))
    compared = compare(
        proof.maps,
        sals,
        target=proof.chosen.target,
        data_root=again.data_root,
        split=split,
        saliency_quality=bool(sals),
    )
    rows = [pair.row(compared) for pair in compared.pairs]
    report = Report(
        title="", target=compared.target.name, classes=list(compared.target.classes), rows=rows
    )
    yield markdown(report).rstrip()
    for reason in missing:
        yield f"No curve: {_cell(reason)}"
    picture = pictures.add(proof, "curve", curves_png(rows))
    yield f"Curves: {code(pictures.written[-1].name)}"
    yield picture


def _partners(proof: Proof) -> list[str]:
    """Keys of saliency maps that the training saw or a result was measured with, each once."""
    measured = [r.saliency.key for r in proof.chosen.entry.results if r.saliency is not None]
    keys = [*proof.manifest.trained_with, *(key for key in measured if key is not None)]
    return list(dict.fromkeys(key for key in keys if key.startswith("sal/")))


def _percent(value: float) -> str:
    return "–" if value != value else f"{100 * value:.1f} %"
