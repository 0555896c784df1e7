"""The vocabulary as tokenizer files that transformers reads: a token's text is a line, and a timeline is lines.

    SEX//F
    RACE//WHITE
    ...

A tokenizer there reads text, and splits it before it looks words up; a text of ours may hold spaces, but no line break.
So `tokenizer.json` splits at line breaks, looks whole lines up, and refuses a line that is no token; decoding puts the
line breaks back. PAD is called <PAD> there: transformers finds special tokens anywhere in the text, and "PAD" may well
be part of a drug's name. All other texts, and all ids, are the vocabulary's own.

For models of type qwen2, transformers 5 ignores `tokenizer_class` and takes Qwen2's own tokenizer, which splits words
(`MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS` there), unless the configuration names a class of the folder. So it names
`tokenization_events.EventTokenizer`, the general class by another name; without trust_remote_code that file is not run,
and the general class itself is taken.
"""

import json
import pathlib
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.vocabulary import PAD, TIMELINE_END, Vocabulary

PAD_TEXT = "<PAD>"
_SEPARATOR = "\n"


def write(folder: pathlib.Path, vocabulary: Vocabulary, *, max_positions: int) -> None:
    """Write the tokenizer's three files; `max_positions` is the row length of training.

    Raises:
      UserError: a token's text holds a line break, or one of the two special tokens' texts (named by its id).
    """
    texts = _texts(vocabulary)
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(texts), indent=1, ensure_ascii=False) + "\n")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "auto_map": {"AutoTokenizer": [None, "tokenization_events.EventTokenizer"]},
        "pad_token": PAD_TEXT,
        "eos_token": TIMELINE_END,
        "model_max_length": max_positions,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",  # as generation wants it
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "tokenization_events.py").write_text(_CLASS)


_CLASS = """\
from transformers import PreTrainedTokenizerFast


class EventTokenizer(PreTrainedTokenizerFast):
    \"\"\"tokenizer.json as it is.\"\"\"
"""


def _texts(vocabulary: Vocabulary) -> list[str]:
    texts = [token.text for token in vocabulary.tokens]
    texts[PAD] = PAD_TEXT
    for index, text in enumerate(texts):
        for special in (PAD_TEXT, TIMELINE_END, _SEPARATOR):
            if special in text and text != special:
                raise UserError(
                    f"its text holds {special!r}, which transformers would take for a token of its own",
                    where=f"vocabulary, token {index}",
                    fix="rename the code in the data or the code map, and rebuild the corpus",
                )
    return texts


def _tokenizer(texts: list[str]) -> dict[str, Any]:
    ids = {text: index for index, text in enumerate(texts)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": ids[text],
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for text in (PAD_TEXT, TIMELINE_END)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": _SEPARATOR},
            "behavior": "Removed",
            "invert": False,
        },
        "post_processor": None,
        # A line break before each token, all in one, without the first.
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"Regex": r"\A"}, "content": _SEPARATOR},
                {"type": "Fuse"},
                {"type": "Strip", "content": _SEPARATOR, "start": 1, "stop": 0},
            ],
        },
        # The unknown token is in no vocabulary: what is no token is an error, not silently another.
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": "<not a token of the vocabulary>"},
    }
