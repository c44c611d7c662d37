"""The table of published thresholds, against what the papers and the authors' programs say."""

from __future__ import annotations

import pytest

from wsssbed_hub.evaluation.published import PUBLISHED, method_of, published
from wsssbed_hub.utils.errors import UsageError

# Table 6 of the WSSS-BED paper, and Section 3.2 for EPS and L2G.
TABLE_6 = {"CAM": 0.1, "OAA": 0.3, "MCIS": 0.5, "DRS": 0.5, "EDAM": 0.5, "EPS": 0.2, "L2G": 0.3}

# The READMEs of cam-oaa-labels, cam-drs-labels, cam-edam-inference, cam-eps-inference and cam-l2g;
# EDAM without saliency: the default of its infer_cls.py.
AUTHORS = {
    "cam": [],
    "oaa": [("oaa", 0.3, True)],
    "mcis": [("mcis", 0.3, True)],
    "drs": [("drs", 0.2, True)],
    "edam": [("edam", 0.25, True), ("edam", 0.5, False)],
    "eps": [("paper", 0.2, False)],
    "l2g": [("paper", 0.25, False)],
}


def test_the_benchmark() -> None:
    assert {name.upper(): known.benchmark.tau for name, known in PUBLISHED.items()} == TABLE_6
    without = [name for name, known in PUBLISHED.items() if not known.benchmark.saliency]
    assert without == ["eps", "l2g"]
    assert {known.benchmark.rule for known in PUBLISHED.values()} == {"paper"}


def test_the_authors() -> None:
    found = {
        name: [(one.rule, one.tau, one.saliency) for one in known.authors]
        for name, known in PUBLISHED.items()
    }
    assert found == AUTHORS


@pytest.mark.parametrize(
    ("key", "method"),
    [("cam/cam", "cam"), ("cam/eps-vst-duts", "eps"), ("cam/l2g-paper-l2g@1.0.0", "l2g")],
)
def test_method_of_a_key(key: str, method: str) -> None:
    assert method_of(key) == method
    assert published(key) == PUBLISHED[method]


def test_keys_without_published_settings() -> None:
    with pytest.raises(UsageError, match="Did you mean 'edam'"):
        published("cam/edams")
    with pytest.raises(UsageError, match="sal/vst-duts does not name activation maps"):
        published("sal/vst-duts")


def test_in_words() -> None:
    assert published("cam/mcis").brief == "0.5 (mcis 0.3)"
    assert published("cam/eps-vst-duts").brief == "0.2 without sal"
    assert published("cam/l2g-vst-duts").brief == "0.3 without sal (0.25 without sal)"
    assert str(published("cam/oaa")) == (
        "WSSS-BED 0.3 with saliency; authors 0.3 with saliency, rule oaa"
    )
    assert published("cam/l2g-vst-duts").as_dicts() == [
        {"by": "WSSS-BED", "tau": 0.3, "saliency": False, "rule": "paper"},
        {"by": "authors", "tau": 0.25, "saliency": False, "rule": "paper"},
    ]
