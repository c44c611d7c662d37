"""Merging: what is there already and what somebody adds to it, as one manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from wsssbed_hub.artifacts.manifest import Manifest, TrainedOn
from wsssbed_hub.utils.errors import HubError


def merge(old: Manifest | None, new: Manifest) -> Manifest:
    """``old`` with what ``new`` adds: entries, and its title, method and licence.

    An entry that is in both stays as it is in ``old``; if there is nothing to add this is ``old``
    itself. What either says of the training holds for its own targets. Raises HubError if the
    content of an entry differs: a version never changes.
    """
    if old is None:
        return new
    if new.key != old.key:
        raise HubError(f"A manifest of {new.key} cannot go where {old.key} is.")
    there = {chosen[:2]: chosen for chosen in old.entries()}
    added = []
    for chosen in new.entries():
        same = there.get(chosen[:2])
        if same is None:
            added.append(chosen)
        elif same.entry.content != chosen.entry.content or same.entry.content is None:
            raise HubError(
                f"{old.key}@{chosen.version} over {chosen.target} is there already with other "
                f"content: {same.entry.content} there, {chosen.entry.content} here. A version "
                "never changes: give this one a higher number."
            )
    if not added:
        return old
    whole = new.with_entries([*there.values(), *added])
    return whole.model_copy(update={"trained_on": _trained_on(old, new)})


def _trained_on(old: Manifest, new: Manifest) -> list[TrainedOn]:
    """The facts of ``new``, and those of ``old`` on the targets that ``new`` does not have."""
    others = [target for target in old.targets() if target not in new.targets()]
    if not others:
        return new.trained_on
    both = [item for item in new.trained_on if item in old.trained_on]
    kept = _over(others, (item for item in old.trained_on if item not in both))
    told = _over(new.targets(), (item for item in new.trained_on if item not in both))
    return [*both, *kept, *told]


def _over(targets: Iterable[str], items: Iterable[TrainedOn]) -> Iterator[TrainedOn]:
    """``items``, restricted to these targets."""
    for item in items:
        for target in targets:
            if item.target in (None, target):
                yield item.model_copy(update={"target": target})
