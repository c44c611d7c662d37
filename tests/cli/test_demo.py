"""The demo is a list of commands; here, that they fit together. CI runs them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from reports import full_report
from samples import Hub, key_folder

from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.cli import demo
from wsssbed_hub.report.summary import Summary
from wsssbed_hub.utils.errors import HubError

EXTRAS = list(demo.OTHERS)


@pytest.mark.parametrize("extra", [(), *((name,) for name in EXTRAS), EXTRAS])
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
            assert {key for key in pushed if "ssnet" in key or key.startswith("sal/")} <= named
    assert all(Key.parse(key) for key in pushed)
    assert {key.split("/")[0] for key in pushed} == {"sal", "cam", "label", "weights"}


def test_quick_trains_less_but_runs_the_same_steps() -> None:
    full = [step.title for step in demo.steps(Path("out"), demo.FULL, 0)]
    quick = [step.title for step in demo.steps(Path("out"), demo.QUICK, 0)]
    assert full == quick


@pytest.mark.parametrize("name", EXTRAS)
def test_another_method_comes_on_top(name: str) -> None:
    """What the demo does without it is done in the same way, so that it can be added later."""
    plain = [step.line for step in demo.steps(Path("out"), demo.FULL, 0)][:-1]
    more = [step.line for step in demo.steps(Path("out"), demo.FULL, 0, (name,))]
    assert more[: len(plain)] == plain
    assert any(line.startswith(f"python -m stages {name} --data shapes") for line in more)
    quick = [step.line for step in demo.steps(Path("out"), demo.QUICK, 0, (name,))]
    less = ("--steps 20", "_epochs=1 ")
    assert all(any(w in f"{x} " for w in less) for x in quick if "--recipe shapes" in x)


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


def test_a_summary_lies_beside_the_report(
    command: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the steps are one, which prints the report that the others would lead to."""
    (tmp_path / "report").write_text(full_report().dump())
    show = f"import pathlib; print(pathlib.Path({str(tmp_path / 'report')!r}).read_text())"
    folder = tmp_path / "demo"

    class Print(demo.Step):
        argv = [sys.executable, "-c", show]  # noqa: RUF012

    printing = Print("compare", "hub", ("report",), folder / "report.json")
    monkeypatch.setattr(demo, "steps", lambda *_: [printing])
    key_folder(folder / "artifacts" / demo.CAM, "cam", name="cam")
    done = command("demo", "--to", folder, "--seed", "3", "--quick")
    assert done.code == 0, done.err
    assert "words40" in done.out
    summary = Summary.model_validate_json((folder / "summary.json").read_text())
    assert summary.command == "wsssbed-hub demo --seed 3 --quick"
    assert summary.minutes is None  # the folder was there before
    assert [row.name for row in summary.rows] == [row.name for row in full_report().rows]
