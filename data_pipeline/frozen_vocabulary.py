"""Building with the vocabulary of another corpus: for external validation sets, and for new data of a trained model.

The vocabulary decides all of the configuration but the cohort and where these records end: what the model was not
trained on it can't read.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections

from data_pipeline import build_config, code_maps, corpus, follow_up
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import Vocabulary

# The parts of a configuration that say who is in a corpus, and until when, and not how it is read.
_FREE = ("cohort", "observed_until")


@dataclasses.dataclass(frozen=True)
class FrozenVocabulary:
    """A finished corpus's vocabulary, and what is told of where it comes from."""

    vocabulary: Vocabulary
    source: Mapping[str, str]
    config: Mapping[str, Any]

    @classmethod
    def of(cls, source: corpus.Corpus) -> "FrozenVocabulary":
        """That of a corpus; raises UserError when it is damaged."""
        about = {"corpus_fingerprint": source.fingerprint, "name": str(source.manifest["source"]["name"])}
        return cls(source.vocabulary, about, source.manifest["config"])

    def adopt(self, config: ml_collections.ConfigDict, explicit: Collection[str]) -> ml_collections.ConfigDict:
        """The configuration with the vocabulary's choices in it.

        Raises UserError when a key asks for something else: one of `explicit` (KEY or KEY.KEY), which the user named,
        or one that is not as the default configuration has it.
        """
        self._check_ends(config.observed_until)
        default = dict(build_config.flat(build_config.get_config().to_dict()))
        fixed = dict(build_config.flat(self.config))
        for key, value in build_config.flat(config.to_dict()):
            if key.partition(".")[0] in _FREE or value == fixed.get(key):
                continue
            is_asked_for = key in explicit or value != default.get(key)
            if is_asked_for and not (key == "code_map" and code_maps.named(value) == self.vocabulary.code_map):
                raise UserError(
                    f"{value!r}, but the vocabulary was made with {fixed.get(key)!r}",
                    where=f"config.{key}",
                    fix="leave it out: with --vocabulary, the vocabulary decides it",
                )
        adopted = config.copy_and_resolve_references()
        adopted.update({key: value for key, value in self.config.items() if key not in _FREE})
        return adopted

    def _check_ends(self, observed_until: str) -> None:
        if self.vocabulary.knows_follow_up and observed_until == follow_up.LAST_EVENT:
            raise UserError(
                "records that end with the last event, but the vocabulary's end with observation",
                where="config.observed_until",
                fix="give the last day of the data, YYYY-MM-DD, or auto where events tell",
            )
        if not self.vocabulary.knows_follow_up and observed_until not in (follow_up.AUTO, follow_up.LAST_EVENT):
            raise UserError(
                f"{observed_until!r}, but the vocabulary's records end with the last event",
                where="config.observed_until",
                fix="leave it out",
            )
