"""The demo is a list of commands; here, that they fit together. CI runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsssbed_hub import demo
from wsssbed_hub.errors import HubError
from wsssbed_hub.keys import Key


def test_nothing_is_used_before_it_is_made() -> None:
    """Every key that is pulled was pushed, every folder that is pushed was made by a stage."""
    pushed: set[str] = set()
    pulled: set[str] = set()
    for step in demo.steps(Path("out"), demo.FULL, 0):
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
            named = {word for word in words if word.startswith(("sal/", "cam/", "weights/"))}
            assert named <= pushed
    assert all(Key.parse(key) for key in pushed)
    assert {key.split("/")[0] for key in pushed} == {"sal", "cam", "label", "weights"}


def test_quick_trains_less_but_runs_the_same_steps() -> None:
    full = [step.title for step in demo.steps(Path("out"), demo.FULL, 0)]
    quick = [step.title for step in demo.steps(Path("out"), demo.QUICK, 0)]
    assert full == quick


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
