"""From a command line to settings: options, recipes, devices, and the list of stages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch

from stages.runtime.catalogue import ROOT, Stage, all_stages, find_stage
from stages.runtime.device import choose_device
from stages.runtime.errors import Interruption, blamed, guarded
from stages.runtime.options import choose_recipe, follow_target
from wsssbed_hub.utils.errors import HubError, UsageError


@dataclass(frozen=True)
class Recipe:
    epochs: int = 24
    steps: int = 0
    batch_size: int = 8
    rate: float = 0.1
    frozen: bool = True
    scales: tuple[float, ...] = (0.5, 1.0)
    crop: tuple[int, int] = (3, 4)
    clip: float | None = None
    mode: str = "max"


RECIPES = {"published": Recipe(), "shapes": Recipe(steps=100)}


def test_assignments_have_the_type_of_their_field() -> None:
    texts = ["rate=1e-3", "frozen=false", "scales=0.5,1,2", "crop=(5, 6)", "clip=2", "mode=a=b"]
    recipe, changes = choose_recipe(RECIPES, "published", assignments=texts)
    expected = Recipe(
        rate=1e-3, frozen=False, scales=(0.5, 1.0, 2.0), crop=(5, 6), clip=2.0, mode="a=b"
    )
    assert recipe == expected
    assert set(changes) == {"rate", "frozen", "scales", "crop", "clip", "mode"}
    assert choose_recipe(RECIPES, "published", assignments=["clip=none"])[0] == Recipe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rat=1", r"no field 'rat'.*Did you mean 'rate'"),
        ("rate", "write NAME=VALUE"),
        ("rate=fast", "--set rate=fast"),
        ("epochs=1.5", "--set epochs=1.5"),
        ("crop=1,2,3", "--set crop=1,2,3"),
        ("rate=none", "--set rate=none"),
    ],
)
def test_wrong_assignments_are_refused_with_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_recipe(RECIPES, "published", assignments=[text])


def test_unknown_recipes_are_refused_with_near_ones() -> None:
    with pytest.raises(UsageError, match=r"'shape'.*Did you mean 'shapes'"):
        choose_recipe(RECIPES, "shape")


@pytest.mark.parametrize(
    ("name", "target", "expected", "said"),
    [
        ("published", "voc12", "published-voc", "that of the target"),
        ("published", "coco14", "published-coco", "that of the target"),
        ("published", "mine", "published-voc", "No recipe was published for mine"),
        ("published-voc", "coco14", "published-voc", ""),
        ("shapes", "coco14", "shapes", ""),
    ],
)
def test_published_follows_the_target(name: str, target: str, expected: str, said: str) -> None:
    both = {"published-voc": Recipe(), "published-coco": Recipe(), "shapes": Recipe()}
    found, why = follow_target(both, name, target)
    assert found == expected
    assert said in why
    assert bool(said) == bool(why)


def test_a_single_published_recipe_serves_every_target() -> None:
    assert follow_target(RECIPES, "published", "coco14") == ("published", "")


def test_length_and_batch_have_options_of_their_own() -> None:
    recipe, _ = choose_recipe(RECIPES, "shapes", steps=7, batch_size=2)
    assert (recipe.steps, recipe.batch_size) == (7, 2)
    recipe, _ = choose_recipe(RECIPES, "shapes", epochs=3)
    assert (recipe.steps, recipe.epochs) == (0, 3)


def test_a_length_that_the_recipe_does_not_have_is_refused() -> None:
    @dataclass(frozen=True)
    class Steps:
        steps: int = 5

    with pytest.raises(UsageError, match=r"--epochs: this recipe has no epochs\. It has steps"):
        choose_recipe({"published": Steps()}, "published", epochs=2)


@dataclass(frozen=True)
class Modes:
    mode: str = "max"
    level: float = 0.5

    def unread(self) -> Iterator[tuple[Collection[str], str]]:
        if self.mode == "max":
            yield ["level"], "The maximum has no level"


def test_fields_that_nothing_reads_beside_the_others_are_refused() -> None:
    recipes = {"published": Modes(), "mean": Modes(mode="mean")}
    with pytest.raises(UsageError, match=r"^The maximum has no level; leave --set level out\.$"):
        choose_recipe(recipes, "published", assignments=["level=0.5"])
    expected = Modes(mode="mean", level=0.1)
    for name, texts in (("published", ["level=0.1", "mode=mean"]), ("mean", ["level=0.1"])):
        assert choose_recipe(recipes, name, assignments=texts)[0] == expected


# Each is refused, and taken with what follows it.
UNREAD = [
    ("cam-l2g", "extra_deviation=none", "network=vgg16"),
    ("cam-l2g", "blocks=1,1,1,1", "network=resnet38"),
    ("cam-l2g", "drops=1", "power=none"),
    ("cam-l2g", "short_side=500", "view=crop"),
    ("cam-drs", "delta=0.4", "suppression=fixed"),
    ("cam-drs", "control_std=0.1", "suppression=learnable"),
    ("cam-drs", "refinement_epochs=2", "maps=refined"),
    ("cam-oaa", "integral_epochs=2", "maps=integral"),
    ("cam-oaa", "drop_rate=1", "drop_layer=true"),
    ("cam-oaa", "first_epoch=2", "maps=accumulated"),
    ("seg-deeplabv3plus", "test_stride=100", "test_mode=slide"),
    ("seg-segformer", "test_scale=512,512", "test_ratios="),
    ("seg-knet", "hue=9", "distortion=1"),
]
_BESIDE = {  # the other choice, where it is not the recipe's
    "network=resnet38": "network=vgg16",
    "power=none": "power=0.9",
    "view=crop": "view=squeeze",
    "suppression=learnable": "suppression=fixed",
    "maps=refined": "maps=classifier",
    "maps=integral": "maps=accumulated",
    "maps=accumulated": "maps=attention",
    "test_ratios=": "test_ratios=1",
    "distortion=1": "distortion=0",
}


@pytest.mark.parametrize(("stage", "text", "needs"), UNREAD)
def test_methods_refuse_fields_that_nothing_reads(stage: str, text: str, needs: str) -> None:
    recipes = find_stage(stage).load()[1].recipes
    field = text.partition("=")[0]
    beside = [_BESIDE[needs]] if needs in _BESIDE else []
    with pytest.raises(UsageError, match=f"leave --set {field} out"):
        choose_recipe(recipes, "shapes", assignments=[text, *beside])
    assert field in choose_recipe(recipes, "shapes", assignments=[text, needs])[1]


@pytest.mark.parametrize("stage", [s for s in all_stages().values() if s.load()[1] is not None])
def test_what_a_recipe_calls_unread_are_fields_of_it(stage: Stage) -> None:
    for recipe in stage.load()[1].recipes.values():
        names = {field.name for field in fields(recipe)}
        for unread, because in recipe.unread() if hasattr(recipe, "unread") else ():
            assert {*unread} <= names
            assert because[0].isupper()
            assert because[-1] != "."


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto")[0] == torch.device("cpu")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(UsageError, match=r"torch sees no GPU.*--device cpu"):
            choose_device(name)
    for name in ("gpu", "meta", "cuda:x", ""):
        with pytest.raises(UsageError, match="choose auto, cpu, cuda"):
            choose_device(name)


def test_processes_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    assert choose_device("auto") == (torch.device("cuda", 0), "GPU 0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("cuda")[0] == torch.device("cuda", 1)
    assert chosen == [0, 1]
    with pytest.raises(UsageError, match="several processes share"):
        choose_device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="GPU 2 was asked for, and there are 2"):
        choose_device("cuda")


def test_stages_are_found_in_the_tree(tmp_path: Path) -> None:
    for name in (
        "sod/__init__.py",
        "sod/pfan.py",
        "sod/_helper.py",
        "cam/l_2g.py",
        "one/__init__.py",
        "cam/cam.py",
        "ssnet/ssnet.py",
        "ssnet/part.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('"""Title of it.\n\nMore."""\n')
    for name in (
        *("runtime/__init__.py", "runtime/x.py", "backbones/__init__.py"),
        *("cam/__init__.py", "ssnet/__init__.py"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    stages = all_stages(tmp_path)
    assert list(stages) == ["cam-cam", "cam-l-2g", "one", "sod-pfan", "ssnet"]
    assert stages["sod-pfan"].title == "Title of it"
    assert stages["sod-pfan"].module == "stages.sod.pfan"
    assert stages["one"].module == "stages.one"
    alone = stages["ssnet"]
    assert (alone.family, alone.module) == ("stages.ssnet", "stages.ssnet.ssnet")
    assert alone.title == "Title of it"


def test_a_method_is_found_with_its_family_or_as_a_stage_of_its_own() -> None:
    family, method = find_stage("ssnet").load()
    assert (family.__name__, method.__module__) == ("stages.ssnet", "stages.ssnet.ssnet")
    assert find_stage("pseudo").load()[1] is None
    assert find_stage("sod-poolnet").load()[1].__module__ == "stages.sod.poolnet"


def test_every_stage_has_a_title_and_a_near_name_is_suggested() -> None:
    stages = all_stages(ROOT)
    assert {"sod-poolnet", "cam-cam", "pseudo", "seg-deeplabv2", "ssnet"} <= set(stages)
    assert all(stage.title != name for name, stage in stages.items())
    with pytest.raises(UsageError, match="Did you mean 'sod-poolnet'"):
        find_stage("sod-poolnett")


def test_the_list_of_stages_does_not_wait_for_torch() -> None:
    program = (
        "import sys; from stages.__main__ import main; code = main([]);"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sod-poolnet" in done.stdout


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (HubError("the disk sulks"), 1, "error: the disk sulks\n"),
        (UsageError("not so"), 2, "error: not so\n"),
        (Interruption(15, "Stopped after step 3."), 143, "stopped: Stopped after step 3.\n"),
        (OSError(28, "No space left on device", "/x"), 1, "error: No space left on device (/x). "),
        (RuntimeError("CUDA out of memory."), 1, "error: The stage stopped: The memory"),
    ],
)
def test_trouble_becomes_one_message_and_an_exit_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture
) -> None:
    def work() -> None:
        raise error

    assert guarded(work) == code
    assert capsys.readouterr().err.startswith(said)


def test_what_nobody_expects_may_come_of_what_was_set(capsys: pytest.CaptureFixture) -> None:
    def work(error: Exception, assigned: Sequence[str]) -> None:
        with blamed(assigned):
            raise error

    assert guarded(lambda: work(ValueError("0 channels"), ["width=0", "crop=1"])) == 1
    said = capsys.readouterr().err
    assert "ValueError: 0 channels" in said
    assert "Or it comes of --set width=0 crop=1: try it without." in said.splitlines()[-1]
    assert guarded(lambda: work(ValueError("0 channels"), [])) == 1
    assert "--set" not in capsys.readouterr().err
    assert guarded(lambda: work(HubError("no file"), ["width=0"])) == 1
    assert capsys.readouterr().err == "error: no file\n"


def test_a_mistake_of_ours_keeps_its_traceback(capsys: pytest.CaptureFixture) -> None:
    def work() -> None:
        raise KeyError("a bug")

    assert guarded(work) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert "KeyError: 'a bug'" in said
