"""A stage's arguments as they stand outside, rewritten for the container."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsssbed_hub.containers.command import Mount
from wsssbed_hub.containers.mounts import Resolved, resolve
from wsssbed_hub.utils.errors import HubError, UsageError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("data", "out/sal/x", "cache", "elsewhere/maps", "pulled"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "elsewhere/net.pth").write_bytes(b"weights")
    return tmp_path.resolve()


def resolved(root: Path, *arguments: str) -> Resolved:
    return resolve(
        arguments,
        data_root=root / "data",
        out=root / "out",
        cache=root / "cache",
        fetch=lambda key, target: root / "pulled",
    )


def sources(found: Resolved) -> dict[str, Path]:
    return {mount.target: mount.source for mount in found.mounts}


def test_plain_arguments_stay_as_they_are(root: Path) -> None:
    found = resolved(root, "--data", "duts", "--set", "width=8", "--fresh", "--seed=3")
    assert found.arguments == ("--data", "duts", "--set", "width=8", "--fresh", "--seed", "3")
    assert found.mounts == (
        Mount(root / "data", "/data"),
        Mount(root / "out", "/artifacts", read_only=False),
        Mount(root / "cache", "/cache", read_only=False),
    )
    assert found.folders == (root / "out", root / "cache")


@pytest.mark.parametrize("form", ["--data-root={0} --out={1}", "--data-root {0} --out {1}"])
def test_roots_named_in_the_arguments_are_what_is_mounted(root: Path, form: str) -> None:
    words = form.format(root / "elsewhere", root / "new").split()
    found = resolved(root, "--data", "duts", *words)
    assert found.arguments == ("--data", "duts")
    assert sources(found)["/data"] == root / "elsewhere"
    assert sources(found)["/artifacts"] == root / "new"


def test_a_path_below_a_root_is_the_same_path_in_the_container(root: Path) -> None:
    found = resolved(root, "--sal", str(root / "out/sal/x"), f"--init={root / 'data'}")
    assert found.arguments == ("--sal", "/artifacts/sal/x", "--init", "/data")
    assert len(found.mounts) == 3


def test_other_paths_are_mounted_read_only_each_in_a_folder_of_its_own(root: Path) -> None:
    maps, net = root / "elsewhere/maps", root / "elsewhere/net.pth"
    found = resolved(root, "--labels", str(maps), "--weights", str(net), "--init", str(net))
    assert found.arguments[1::2] == ("/inputs/1/maps", "/inputs/2/net.pth", "/inputs/2/net.pth")
    assert found.mounts[3:] == (Mount(maps, "/inputs/1/maps"), Mount(net, "/inputs/2/net.pth"))


def test_relative_paths_are_those_of_the_working_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root / "elsewhere")
    found = resolved(root, "--init", "net.pth", "--cam", "maps")
    assert sources(found)["/inputs/1/net.pth"] == root / "elsewhere/net.pth"
    assert sources(found)["/inputs/2/maps"] == root / "elsewhere/maps"


def test_a_folder_that_is_called_like_a_dataset_is_not_mistaken_for_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    (root / "duts").mkdir()
    assert resolved(root, "--data", "duts").arguments == ("--data", "duts")


def test_words_of_the_stages_own_stay(root: Path) -> None:
    words = ("--init", "timm", "--labels", "ground-truth")
    assert resolved(root, *words).arguments == words


def test_keys_are_fetched_for_the_target_and_mounted(root: Path) -> None:
    asked = []

    def fetch(key: str, target: str) -> Path:
        asked.append((key, target))
        return root / "pulled"

    found = resolve(
        ["--sal", "sal/vst-duts@1.0.0", "--target", "shapes"],
        data_root=root / "data",
        out=root / "out",
        cache=root / "cache",
        fetch=fetch,
    )
    assert asked == [("sal/vst-duts@1.0.0", "shapes")]
    assert found.arguments == ("--sal", "/inputs/1/pulled", "--target", "shapes")


def test_paths_that_are_not_there_are_errors(root: Path) -> None:
    for words in (["--init", "weights/none.pth"], ["--sal", "./none"], ["--cam", "/none"]):
        with pytest.raises(HubError, match="no such file"):
            resolved(root, *words)
    with pytest.raises(HubError, match="--data-root"):
        resolved(root, "--data-root", str(root / "none"))
    with pytest.raises(UsageError, match="needs a value"):
        resolved(root, "--data-root")


def test_links_out_of_the_data_root_lead_to_the_same_place(root: Path) -> None:
    (root / "disk/images").mkdir(parents=True)
    (root / "data/VOC").mkdir()
    (root / "data/DUTS").symlink_to(root / "disk")
    (root / "data/VOC/images").symlink_to("../../disk/images")
    (root / "data/again").symlink_to("VOC")  # stays inside
    (root / "data/gone").symlink_to(root / "nowhere")
    links = {m.target: m for m in resolved(root).mounts[1:-2]}
    # What the links say, read in a container in which the root is /data:
    assert set(links) == {str(root / "disk"), "/disk/images"}
    assert links["/disk/images"] == Mount(root / "disk/images", "/disk/images")


def test_links_into_the_system_are_errors(root: Path) -> None:
    (root / "data/etc").symlink_to("/etc")
    with pytest.raises(HubError, match="leads to /etc"):
        resolved(root)


def test_a_folder_that_is_made_has_to_lie_where_things_stay(root: Path) -> None:
    found = resolved(root, "--predictions", str(root / "out/new/p"), "--server", "voc")
    assert found.arguments == ("--predictions", "/artifacts/new/p", "--server", "voc")
    assert len(found.mounts) == 3
    with pytest.raises(UsageError, match=r"--predictions .*only what is in .*out"):
        resolved(root, "--predictions", str(root / "elsewhere/p"))


def test_images_to_predict_are_a_word_or_a_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root / "elsewhere")
    (root / "elsewhere/val").mkdir()
    assert resolved(root, "--predictions-of", "val").arguments == ("--predictions-of", "val")
    found = resolved(root, "--predictions-of", "./val")
    assert found.arguments == ("--predictions-of", "/inputs/1/val")
    assert sources(found)["/inputs/1/val"] == root / "elsewhere/val"
    with pytest.raises(HubError, match=r"--predictions-of \./photos"):
        resolved(root, "--predictions-of", "./photos")
