"""Trees of what was made from what, whatever the manifests claim."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.artifacts.lineage import (
    CIRCLE,
    DEEPEST,
    MISSING,
    MOST,
    TOO_DEEP,
    TOO_MANY,
    provenance_tree,
)
from wsssbed_hub.artifacts.manifest import (
    Entry,
    Environment,
    File,
    HubSource,
    Ingredient,
    Manifest,
    MethodCitation,
    Provenance,
    TrainedOn,
    UrlSource,
)
from wsssbed_hub.utils.errors import HubError, UsageError


def digest(letter: str) -> str:
    return "sha256:" + letter * 64


def manifest(
    key: str, letter: str, *made_from: Ingredient, trained_with: tuple[str, ...] = (), **entry
) -> Manifest:
    kind = key.split("/")[0]
    names = ["config.json", "model.safetensors"] if kind == "weights" else ["00000.parquet"]
    made = Provenance(
        stage="sod-test",
        command=["python", "-m", "stages", "sod-test", "--data", "my set"],
        project_version="0.1.0",
        date=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        seed=0,
        environment=Environment(python="3.11", torch="2.14.1", deterministic=True),
        made_from=list(made_from),
    )
    return Manifest(
        key=key,
        kind=kind,  # type: ignore[arg-type]
        title="For a test",
        method=MethodCitation(name="Test", paper="https://example.org/paper"),
        trained_on=[TrainedOn(dataset="shapes", supervision="pixel masks")],
        trained_with=list(trained_with),
        versions={
            "1.0.0": {
                "shapes": Entry(
                    images=None if kind == "weights" else 3,
                    image_list=None if kind == "weights" else digest("f"),
                    content=digest(letter),
                    files=[
                        File(path=f"shapes/1.0.0/{name}", size=1, sha256=digest("0"))
                        for name in names
                    ],
                    provenance=made,
                    **entry,
                )
            }
        },
    )


def key_of(role: str, key: str, letter: str) -> Ingredient:
    return Ingredient(role=role, key=key, digest=digest(letter))


def finder(*manifests: Manifest):
    known = {item.key: item for item in manifests}
    return lambda key: known.get(str(key.unversioned))


def test_a_chain_down_to_a_file():
    file = Ingredient(role="initial-weights", file="resnet50.pth", digest=digest("d"))
    weights = manifest("weights/sod-test", "c", file)
    sal = manifest("sal/test", "b", key_of("weights", "weights/sod-test@1.0.0", "c"))
    label = manifest("label/test", "a", key_of("sal", "sal/test@1.0.0", "b"))
    tree = provenance_tree(label, finder(sal, weights))
    assert [(node.role, node.name, node.digest) for node in tree.walk()] == [
        ("pseudo labels", "label/test@1.0.0", digest("a")),
        ("saliency maps", "sal/test@1.0.0", digest("b")),
        ("weights", "weights/sod-test@1.0.0", digest("c")),
        ("initial weights", "resnet50.pth", digest("d")),
    ]
    assert tree.target == "shapes"


def test_facts():
    tree = provenance_tree(manifest("sal/test", "a"), finder())
    assert tree.facts["command"] == "python -m stages sod-test --data 'my set'"
    assert tree.facts["trained on"] == "shapes (pixel masks)"
    assert tree.facts["seed"] == "0"  # zero is a seed, not an absence
    assert tree.facts["deterministic"] == "yes"
    assert tree.facts["date"] == "2026-01-02T03:04:05+00:00"
    assert "GPU" not in tree.facts  # not known, so not said
    assert [(link.text, link.url) for link in tree.links] == [
        ("paper", "https://example.org/paper")
    ]


@pytest.mark.parametrize(
    ("source", "url"),
    [
        (UrlSource(url="https://example.org/a.zip"), "https://example.org/a.zip"),
        (
            HubSource(repo="someone/sal-test", commit="a" * 40),
            f"https://huggingface.co/datasets/someone/sal-test/tree/{'a' * 40}",
        ),
    ],
)
def test_source_is_a_link(source, url):
    tree = provenance_tree(manifest("sal/test", "a", source=source), finder())
    assert tree.links[-1].url == url


def test_a_manifest_that_is_not_at_hand_ends_the_branch():
    label = manifest("label/test", "a", key_of("sal", "sal/test@1.0.0", "b"))
    tree = provenance_tree(label, finder())
    assert [(node.name, node.digest, node.remark) for node in tree.made_from] == [
        ("sal/test@1.0.0", digest("b"), MISSING)
    ]


@pytest.mark.parametrize(
    ("trouble", "remark"),
    [
        (UsageError("There is no sal/test in x."), MISSING),
        (HubError("x cannot be reached."), "its manifest cannot be read: x cannot be reached."),
    ],
)
def test_a_registry_that_fails_ends_the_branch(trouble, remark):
    def find(key):
        raise trouble

    tree = provenance_tree(manifest("cam/test", "a", trained_with=("sal/test",)), find)
    assert [(node.name, node.remark) for node in tree.made_from] == [("sal/test", remark)]


def test_another_digest_than_the_manifest_gives_is_said():
    sal = manifest("sal/test", "e")
    label = manifest("label/test", "a", key_of("sal", "sal/test@1.0.0", "b"))
    (leaf,) = provenance_tree(label, finder(sal)).made_from
    assert leaf.digest == digest("b")
    assert digest("e") in leaf.remark
    assert leaf.facts == {}


def test_a_version_that_is_not_there_ends_the_branch():
    label = manifest("label/test", "a", key_of("sal", "sal/test@2.0.0", "b"))
    (leaf,) = provenance_tree(label, finder(manifest("sal/test", "b"))).made_from
    assert (leaf.name, leaf.facts) == ("sal/test@2.0.0", {})
    assert "no version 2.0.0" in leaf.remark


def test_what_the_training_saw_is_followed_by_its_name_alone():
    """EPS of the release: nothing is known of its saliency maps but the key."""
    weights = manifest("weights/sod-test", "c")
    sal = manifest("sal/test", "b", key_of("weights", "weights/sod-test@1.0.0", "c"))
    cam = manifest("cam/test", "a", trained_with=("sal/test",))
    tree = provenance_tree(cam, finder(sal, weights))
    assert [node.name for node in tree.walk()] == [
        "cam/test@1.0.0",
        "sal/test@1.0.0",
        "weights/sod-test@1.0.0",
    ]
    assert "not stated" in tree.made_from[0].remark
    assert tree.made_from[0].made_from[0].remark is None


def test_what_provenance_and_training_both_name_is_there_once():
    sal = manifest("sal/test", "b")
    cam = manifest(
        "cam/test", "a", key_of("sal", "sal/test@1.0.0", "b"), trained_with=("sal/test",)
    )
    (part,) = provenance_tree(cam, finder(sal)).made_from
    assert (part.name, part.remark) == ("sal/test@1.0.0", None)


def test_other_targets_are_other_maps_but_weights_are_weights():
    sal, weights = manifest("sal/test", "b"), manifest("weights/sod-test", "c")
    cam = manifest("cam/test", "a", trained_with=("sal/test", "weights/sod-test"))
    (entry,) = cam.versions["1.0.0"].values()
    moved = [
        file.model_copy(update={"path": file.path.replace("shapes", "voc12")})
        for file in entry.files
    ]
    over = {"1.0.0": {"voc12": entry.model_copy(update={"files": moved})}}
    tree = provenance_tree(cam.model_copy(update={"versions": over}), finder(sal, weights))
    first, second = tree.made_from
    assert (first.target, first.remark) == (None, "its manifest here has nothing over voc12")
    assert (second.target, second.digest) == ("shapes", digest("c"))


def test_maps_that_claim_to_be_made_of_themselves():
    snake = manifest("sal/test", "a", *[key_of("sal", "sal/test@1.0.0", "a")] * 3)
    nodes = list(provenance_tree(snake, finder(snake)).walk())
    assert [node.remark for node in nodes] == [None, CIRCLE, CIRCLE, CIRCLE]


def test_two_that_claim_to_be_made_of_each_other():
    one = manifest("sal/one", "a", trained_with=("sal/two",))
    two = manifest("sal/two", "b", key_of("sal", "sal/one@1.0.0", "a"))
    names = [node.name for node in provenance_tree(one, finder(one, two)).walk()]
    assert names == ["sal/one@1.0.0", "sal/two@1.0.0", "sal/one@1.0.0"]


def test_depth_is_bounded_and_said():
    chain = [
        manifest(f"sal/test{n}", "a", key_of("sal", f"sal/test{n + 1}@1.0.0", "a"))
        for n in range(3 * DEEPEST)
    ]
    nodes = list(provenance_tree(chain[0], finder(*chain)).walk())
    assert len(nodes) == DEEPEST + 1
    assert [node.remark for node in nodes[:-1]] == [None] * DEEPEST
    assert nodes[-1].remark == TOO_DEEP


def test_size_is_bounded_and_said():
    """Each of them is made from three of the next: half a million, if all were followed."""
    chain = [
        manifest(f"sal/test{n}", "a", *[key_of("sal", f"sal/test{n + 1}@1.0.0", "a")] * 3)
        for n in range(DEEPEST)
    ]
    nodes = list(provenance_tree(chain[0], finder(*chain)).walk())
    assert len(nodes) <= MOST
    assert TOO_MANY in {node.remark for node in nodes}


def test_unknown_version_of_the_root():
    with pytest.raises(UsageError, match="no version"):
        provenance_tree(
            manifest("sal/test", "a"), finder(), version=Key.parse("sal/x@3.0.0").version
        )
