"""The options that every stage has, the command that they become, and the choice of a recipe."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import typer
from pydantic import TypeAdapter, ValidationError

from wsssbed_hub.artifacts.keys import Version
from wsssbed_hub.utils.errors import UsageError, did_you_mean
from wsssbed_hub.utils.options import refuse

WHERE = "KEY[@VERSION], or a folder or zip of maps"
PUBLISHED = "published"
_PUBLISHED_FOR = {"voc12": "published-voc", "coco14": "published-coco"}
_OF_TRAINING = {"seed", "seeds", "steps", "epochs", "batch_size", "precision", "checkpoint_every"}

OptionsType = TypeVar("OptionsType", bound="OutputOptions")


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Options of every stage: over which images, from where, to where.

    Raises UsageError for a version that is none.
    """

    target: Annotated[str, typer.Option(help="Dataset whose images the artifact is for.")] = "voc12"
    data_root: Annotated[
        Path, typer.Option(envvar="WSSSBED_DATA", help="Folder with the datasets, as distributed.")
    ] = Path("/data")
    out: Annotated[Path, typer.Option(help="Folder for artifacts (and runs/).")] = Path(
        "/artifacts"
    )
    version: Annotated[str, typer.Option(help="Version of the artifact.")] = "1.0.0"
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Only the first N images of the target, for trials.", metavar="N"),
    ] = None
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh/--resume", help="Discard what an earlier run left, or go on from it."
        ),
    ] = False

    def __post_init__(self) -> None:
        Version.parse(self.version)

    def useless(self) -> Iterator[tuple[Collection[str], str]]:
        """Fields that change nothing beside the other ones, and why; to give them is a mistake."""
        yield from ()


@dataclass(frozen=True, kw_only=True)
class TrainOptions(OutputOptions):
    """Further options of every stage that trains a network."""

    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")] = 0
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:N or mps. auto: the GPU if there is one.")
    ] = "auto"
    precision: Annotated[
        Literal["float32", "tf32", "bf16", "fp16"],
        typer.Option(
            help="Of the products in the training: tf32 rounds factors to 10 bits (NVIDIA GPUs), "
            "bf16 and fp16 are mixed precision. Maps are made in float32."
        ),
    ] = "float32"
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images of an optimiser step.", show_default="the recipe's"),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Processes that load images; changes speed only.", show_default="by cores"
        ),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Optimiser steps of the training.", show_default="the recipe's"),
    ] = None
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs of the training.", show_default="the recipe's"),
    ] = None
    weights: Annotated[
        Path | None,
        typer.Option(help="A trained checkpoint, ours or the authors': nothing is trained."),
    ] = None
    init: Annotated[
        list[str] | None,
        typer.Option(
            help="Initial weights: a file, `timm` (from the Hub cache) or `random`; of several, "
            "each by its name, repeatable.",
            metavar="[NAME=]FILE|timm|random",
        ),
    ] = None
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="An operation that is not deterministic becomes an error."
        ),
    ] = False
    recipe: Annotated[
        str,
        typer.Option(
            help="published (where the authors published several, that of the target), or shapes: "
            "a small network for that target."
        ),
    ] = PUBLISHED
    set: Annotated[
        list[str] | None,
        typer.Option(help="Any field of the recipe (see below); repeatable.", metavar="NAME=VALUE"),
    ] = None
    checkpoint_every: Annotated[
        float, typer.Option(min=0, help="Seconds between checkpoints.", metavar="SECONDS")
    ] = 600.0

    def useless(self) -> Iterator[tuple[Collection[str], str]]:
        yield from super().useless()
        if self.weights is not None:
            yield _OF_TRAINING, "With --weights nothing is trained"


@dataclass(frozen=True, kw_only=True)
class SeveralTrainings(TrainOptions):
    """For stages that measure what they train: ``study.seeds_of`` reads ``seeds``."""

    seeds: Annotated[
        str | None,
        typer.Option(
            help="Several trainings, one per seed, as in 0,1,2.", show_default="that of --seed"
        ),
    ] = None

    def useless(self) -> Iterator[tuple[Collection[str], str]]:
        yield from super().useless()
        if self.seeds is not None:
            yield ["seed"], "--seeds names every seed"


def command(
    options: type[OptionsType],
    run: Callable[[Callable[[], OptionsType]], int],
    *,
    name: str,
    title: str,
    epilog: str = "",
) -> typer.Typer:
    """A command line whose options are the fields of a dataclass, own fields before inherited.

    ``run`` gets a function that makes an instance and returns the exit code.
    """

    def invoke(context: typer.Context, **values: Any) -> None:
        def understood() -> OptionsType:
            made = options(**values)
            for names, because in made.useless():
                refuse(context, names, because)
            return made

        raise typer.Exit(run(understood))

    hints = get_type_hints(options, include_extras=True)
    own = inspect.get_annotations(options)
    ordered = sorted(fields(options), key=lambda field: field.name not in own)
    context = inspect.Parameter(
        "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )
    invoke.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            context,
            *(
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if field.default is MISSING else field.default,
                    annotation=hints[field.name],
                )
                for field in ordered
            ),
        ]
    )
    invoke.__annotations__ = {field.name: hints[field.name] for field in ordered}
    invoke.__annotations__["context"] = typer.Context
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(name, help=title, epilog=epilog)(invoke)
    return app


def follow_target(recipes: Mapping[str, Any], name: str, target: str) -> tuple[str, str]:
    """The recipe that ``name`` stands for, and a sentence on why; "" where it is ``name`` itself.

    A method with a published recipe for each of VOC and COCO holds both by name, and "published"
    is that of the target; for one that the authors did not train on it is VOC's.
    """
    if name != PUBLISHED or PUBLISHED in recipes:
        return name, ""
    chosen = _PUBLISHED_FOR.get(target)
    if chosen is not None and chosen in recipes:
        return chosen, f"The published recipe is {chosen}, that of the target."
    chosen = _PUBLISHED_FOR["voc12"]
    return chosen, f"No recipe was published for {target}: {chosen} is used."


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
    names, for values that are not of the field's type, for two that say the same thing, and for
    fields that nothing reads beside the others (``unread`` of the recipe).
    """
    if name not in recipes:
        raise UsageError(
            f"There is no recipe {name!r} here, only {', '.join(recipes)}."
            f"{did_you_mean(name, recipes)}"
        )
    recipe = recipes[name]
    known = {field.name for field in fields(recipe)}
    changes: dict[str, Any] = {}
    for text in assignments:
        field, value = _assignment(recipe, text)
        if field in changes:
            raise UsageError(f"--set gives {field} twice: choose one.")
        changes[field] = value
    given = {"steps": steps, "epochs": epochs, "batch_size": batch_size}
    for field, value in given.items():
        if value is None:
            continue
        if field not in known:
            option = "--" + field.replace("_", "-")
            others = sorted(known & given.keys())
            hint = f" It has {', '.join(others)}." if others else ""
            raise UsageError(f"{option}: this recipe has no {field}.{hint}")
        if field in changes:
            raise UsageError(f"{field} is given twice, with --set too: choose one.")
        changes[field] = value
    if "epochs" in changes and "steps" in known:
        if changes.get("steps"):
            raise UsageError("Steps and epochs both say how long the training is: choose one.")
        changes["steps"] = 0
    chosen = replace(recipe, **changes)
    _refuse_unread(chosen, changes.keys() - given.keys())
    return chosen, changes


def _refuse_unread(recipe: Any, assigned: Collection[str]) -> None:
    """Raises UsageError if a recipe says that nothing reads one of its ``assigned`` fields.

    A recipe class that has such fields has a method ``unread``, which is as ``useless`` of the
    options.
    """
    for names, because in recipe.unread() if hasattr(recipe, "unread") else ():
        idle = sorted({*names} & {*assigned})
        if idle:
            raise UsageError(f"{because}; leave --set {', '.join(idle)} out.")


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
