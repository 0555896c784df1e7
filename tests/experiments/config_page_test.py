"""docs/config.md is what the configurations and the comments beside their keys say."""

import pathlib

import pytest

from experiments import config_page

ROOT = pathlib.Path(__file__).parents[2]


def test_the_documentation_has_the_current_page() -> None:
    said = "python -m experiments.config_page --out docs/config.md"
    assert (ROOT / "docs" / "config.md").read_text() == config_page.page(), said


@pytest.mark.parametrize("part", config_page.parts(), ids=lambda part: part.title)
def test_every_key_says_what_it_means(part) -> None:
    keys = config_page.keys(part)
    assert keys and not [key.path for key in keys if not key.meaning]


def test_a_comment_stands_behind_its_key_or_above_it_and_those_below() -> None:
    source = """
def default_config():
    config.seed = 0  # of the order
    config.train = _train()
    # Of two lines,
    # one meaning.
    config.low = 1
    config.high = 2

    config.bare = 3
    config.data = ml_collections.ConfigDict(
        {
            # Both ends.
            "first": 1,
            "last": ("#",),
            "own": "x",  # its own
        }
    )

def _train():
    train = ml_collections.ConfigDict()  # a section
    train.steps = 5
    return train
"""
    assert config_page.comments(source) == {
        "seed": "of the order",
        "train": "a section",
        "low": "Of two lines, one meaning.",
        "high": "Of two lines, one meaning.",
        "bare": "",
        "data": "",
        "data.first": "Both ends.",
        "data.last": "Both ends.",
        "data.own": "its own",
        "train.steps": "",
    }
