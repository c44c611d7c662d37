"""Recipes: a method's hyper-parameters, chosen and changed on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from wsssbed_hub.utils.errors import UsageError, did_you_mean


def choose_recipe(
    recipes: Mapping[str, Any],
    name: str,
    *,
    assignments: Iterable[str] = (),
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
) -> tuple[Any, dict[str, Any]]:
    """The recipe ``name`` with changes, and the changes by field.

    ``assignments`` are ``field=value``. The others set the fields of their names; a recipe with
    ``steps`` and ``epochs`` goes by the epochs if its steps are 0. Raises UsageError for unknown
    names and for values that are not of the field's type.
    """
    if name not in recipes:
        raise UsageError(
            f"There is no recipe {name!r} here, only {', '.join(recipes)}."
            f"{did_you_mean(name, recipes)}"
        )
    recipe = recipes[name]
    known = {field.name for field in fields(recipe)}
    changes = dict(_assignment(recipe, text) for text in assignments)
    given = {"steps": steps, "epochs": epochs, "batch_size": batch_size}
    for field, value in given.items():
        if value is None:
            continue
        if field not in known:
            option = "--" + field.replace("_", "-")
            others = sorted(known & given.keys())
            hint = f" It has {', '.join(others)}." if others else ""
            raise UsageError(f"{option}: this recipe has no {field}.{hint}")
        changes[field] = value
    if epochs is not None and steps is None and "steps" in known:
        changes["steps"] = 0
    return replace(recipe, **changes), changes


def described(recipe: Any) -> str:
    """The fields of a recipe and their values, for a help text."""
    lines = [f"{name}={_text(value)}" for name, value in asdict(recipe).items()]
    return ", ".join(lines)


def _assignment(recipe: Any, text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    hints = get_type_hints(type(recipe))
    names = [field.name for field in fields(recipe)]
    if not equals:
        raise UsageError(f"--set {text}: write NAME=VALUE.")
    if name not in names:
        raise UsageError(
            f"--set {text}: the recipe has no field {name!r}.{did_you_mean(name, names)} "
            f"Its fields are {', '.join(names)}."
        )
    return name, _value(hints[name], value, text)


def _value(hint: Any, text: str, assignment: str) -> Any:
    if text.lower() == "none" and NoneType in get_args(hint):
        return None
    several = get_origin(hint) in (tuple, list)
    parts = [part.strip() for part in text.strip("()[] ").split(",")]
    raw: Any = [part for part in parts if part] if several else text
    try:
        return TypeAdapter(hint).validate_python(raw)
    except ValidationError as error:
        what = "; ".join(item["msg"] for item in error.errors())
        raise UsageError(f"--set {assignment}: {what}.") from None


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value))
    return value if isinstance(value, str) else json.dumps(value)
