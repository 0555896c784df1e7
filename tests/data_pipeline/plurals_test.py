"""One is told in the singular."""

import pytest

from data_pipeline.plurals import counted


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 batches"), (1, "1 batch"), (2, "2 batches"), (1204, "1,204 batches")]
)
def test_a_count_and_its_noun_agree(number, said) -> None:
    assert counted(number, "batch", "batches") == said
    assert counted(number, "row") == said.replace("batches", "rows").replace("batch", "row")
