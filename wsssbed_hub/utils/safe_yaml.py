"""YAML from outside: no objects, no aliases, nothing twice, bounded nesting."""

from __future__ import annotations

from typing import Any

import yaml

from wsssbed_hub.utils.errors import HubError

MAX_DEPTH = 32  # a manifest's own fields end at 8, and a recipe may go on below


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML in which no key stands twice and dates stay text."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str) or name in seen:
                raise yaml.YAMLError(f"{name!r} is not text, or is given twice")
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: node.value)


def _check_shape(text: bytes | str) -> None:
    """Raises YAMLError for YAML that grows or nests without bounds, before anything is built."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed: a few lines can expand to gigabytes")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:  # before anything recursive meets it
            raise yaml.YAMLError(f"it nests deeper than {MAX_DEPTH} levels")


def load_yaml(text: bytes | str, name: str) -> Any:
    """Mappings, lists, text, numbers and booleans that ``text`` holds; dates stay text.

    Raises HubError naming ``name`` for anything else.
    """
    try:
        _check_shape(text)
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise HubError(f"{name} is not YAML that is read here: {error}") from None
