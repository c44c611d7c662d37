"""The demo is a list of commands; here, that they fit together. CI runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples import Hub

from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.cli import demo
from wsssbed_hub.utils.errors import HubError


@pytest.mark.parametrize("extra", [(), (demo.SSNET,)])
def test_nothing_is_used_before_it_is_made(extra: tuple[str, ...]) -> None:
    """Every key that is pulled was pushed, every folder that is pushed was made by a stage."""
    pushed: set[str] = set()
    pulled: set[str] = set()
    for step in demo.steps(Path("out"), demo.FULL, 0, extra):
        words = list(step.words)
        if words[0] == "push":
            pushed.add(words[1].removeprefix("out/artifacts/"))
        if words[0] == "pull":
            assert words[1] in pushed
            pulled.add(f"out/pulled/{words[1]}")
        for word in words[1:]:
            if word.startswith("out/pulled/") and words[0] != "pull":
                assert word in pulled
        if words[0] == "report":
            kinds = ("sal/", "cam/", "label/", "weights/")
            named = {word for word in words if word.startswith(kinds)}
            assert named <= pushed
            # What one method makes is shown wherever it can be.
            assert {key for key in pushed if "ssnet" in key} <= named
    assert all(Key.parse(key) for key in pushed)
    assert {key.split("/")[0] for key in pushed} == {"sal", "cam", "label", "weights"}


def test_quick_trains_less_but_runs_the_same_steps() -> None:
    full = [step.title for step in demo.steps(Path("out"), demo.FULL, 0)]
    quick = [step.title for step in demo.steps(Path("out"), demo.QUICK, 0)]
    assert full == quick


def test_another_method_comes_on_top() -> None:
    """What the demo does without it is done in the same way, so that it can be added later."""
    plain = [step.line for step in demo.steps(Path("out"), demo.FULL, 0)][:-1]
    more = [step.line for step in demo.steps(Path("out"), demo.FULL, 0, (demo.SSNET,))]
    assert more[: len(plain)] == plain
    assert any(line.startswith("python -m stages ssnet --data shapes") for line in more)
    quick = [step.line for step in demo.steps(Path("out"), demo.QUICK, 0, (demo.SSNET,))]
    assert all("--steps 20" in line for line in quick if "--recipe shapes" in line)


def test_a_failing_step_says_which_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = demo.Step("fail on purpose", "hub", ("pull", "no-key"))
    never = demo.Step("never reached", "hub", ("list",))
    monkeypatch.setattr(demo, "steps", lambda *_: [failing, never])
    said: list[str] = []
    with pytest.raises(HubError, match=r"fail on purpose.* exit code 2.*run the demo again"):
        demo.run(tmp_path, demo.FULL, 0, said.append)
    assert "wsssbed-hub pull no-key" in said[0]
    assert len(said) == 1


def test_an_unknown_method_is_refused(command: Hub, tmp_path: Path) -> None:
    done = command("demo", "--with", "sssnet", "--to", tmp_path / "demo")
    assert done.code == 2
    assert "ssnet" in done.err
    assert not (tmp_path / "demo").exists()
