"""The true entropy of a study's validation tokens, which no model can get under and which E is read beside."""

import pathlib
from collections.abc import Callable

from cometjax import workdir as workdirs
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from data_pipeline.mixture import open_corpus
from data_pipeline.world import scoring


def entropy_floor(file: str, corpus: str, say: Callable[[str], None]) -> float | None:
    """Nats per token: of the file, if one is named, or else of the corpus, if it was built from the world.

    Args:
        file: what `data_pipeline.world --score` wrote, or "".
        corpus: the study's corpus.
        say: is told why the entropy of a world's corpus is not known; a study is worth its report without.

    Returns None where it is not known. Raises UserError for a file that does not hold it.
    """
    if file:
        return _read(pathlib.Path(file))
    opened = open_corpus(corpus)
    if not isinstance(opened, Corpus) or not scoring.is_world(opened.manifest["source"]["name"]):
        return None
    try:
        return scoring.split_floor(opened, progress=True).floor
    except UserError as error:
        say(f"true entropy: {error}")
        return None


def _read(path: pathlib.Path) -> float:
    content = workdirs.read_json(path) if path.exists() else {}
    if isinstance(content.get("floor"), float):
        return float(content["floor"])
    raise UserError("has no entropy floor", where=str(path), fix="write it with python -m data_pipeline.world --score")
