"""The default corpus configuration: every key that `python -m data_pipeline.build --config.KEY=VALUE` takes.

Copy this file, change its values and pass it by `--config FILE` to keep a configuration of your own: one with a key
more, a key less or a value of another type is refused. What CoMET's paper says of its own corpus (arXiv 2508.12104) is,
in these keys:

    --config.cohort.min_age=18 --config.cohort.max_age=120 --config.cohort.min_encounters=2
    --config.cohort.first_date=2012-01-01 --config.cohort.last_date=2025-12-31
    --config.max_codes.LAB=1000 --config.max_codes.PROCEDURE=1500
"""

from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from data_pipeline import follow_up, intervals
from data_pipeline.cohort import Cohort
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import VALUE_ENCODINGS
from data_pipeline.vocabulary_builder import EVENT_KINDS, VocabularyPolicy

CUSTOM = "custom"


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration of a corpus."""
    return ml_collections.ConfigDict(
        {
            # How the data set's codes are read: world, mimic, omop, synthea, generic, or the path of a JSON file
            # (docs/code_maps.md).
            "code_map": "generic",
            # Interval tokens: comet13 (1 minute to 6 months), ethos19 (5 minutes to 6 months), or custom.
            "interval_preset": "comet13",
            # With custom: the lower bounds, rising, in m, h, d, w, mt (months) or y: "5m,1h,1d,30d,6mt".
            "interval_bounds": "",
            # Where a record ends. auto: with the code map's events of role observation_end where training subjects have
            # any, else with the last event; last_event; or for all subjects with a day, YYYY-MM-DD, the last one of the
            # data. What was silent since the last event is written as time, but for the dead (docs/simulation.md).
            "observed_until": "auto",
            # A code seen in fewer training subjects is shortened, then UNKNOWN: rare codes can single people out.
            "min_subjects_per_code": 11,
            # At most so many codes of a kind, those of most training subjects (ties by name); 0: any number.
            "max_codes": dict.fromkeys(EVENT_KINDS, 0),
            # A code with fewer training values has no deciles.
            "min_values_per_code": 50,
            # split: a code, then the decile of its value, which all codes share. fused: one token for both.
            "value_encoding": "split",
            # Whether results in words (text_value: NEG, POS) become values too: short ones that at least
            # min_subjects_per_code training subjects have with that code, where the code has few of them.
            "text_values": False,
            # A code with more such results than this has free text, and none of it is used.
            "max_texts_per_code": 20,
            # Who and what the corpus is made of; each choice is off as it stands here. Prompts are never filtered.
            "cohort": {
                # Age at an event, in whole years, both included.
                "min_age": config_dict.placeholder(int),
                "max_age": config_dict.placeholder(int),
                # Date of an event, YYYY-MM-DD, both included. Of no use where dates are shifted, as in MIMIC.
                "first_date": config_dict.placeholder(str),
                "last_date": config_dict.placeholder(str),
                # So many face-to-face encounters, starting on different days within so many days; 0: none needed.
                "min_encounters": 0,
                "within_days": 730,
                # Concepts of encounters' starts that count: here, all but those at a distance and moves within a stay.
                # Nobody is admitted at a distance, and a ward's name may look like it: TELEMETRY, VIDEO EEG.
                "face_to_face": (
                    r"ENCOUNTER//ENCOUNTER_START//(?!ICU)(?:INPATIENT|"
                    r"(?!(?i:.*(tele(?!metry)|phone|virtual|video|e-?visit|online|message|remote|refill)))).*"
                ),
            },
        }
    )


def cohort(config: ml_collections.ConfigDict) -> Cohort:
    """The cohort that a configuration describes; raises UserError that names the key whose value makes no sense."""
    return Cohort(**config.cohort.to_dict())


def vocabulary_policy(config: ml_collections.ConfigDict) -> VocabularyPolicy:
    """What a configuration says of the vocabulary; raises UserError that names the key whose value makes no sense."""
    for key in ("min_subjects_per_code", "min_values_per_code", "max_texts_per_code"):
        if config[key] < 1:
            raise UserError(f"{config[key]} is below 1", where=f"config.{key}", fix="give a positive number")
    for kind, most in config.max_codes.items():
        if most < 0:
            raise UserError(f"{most} is below 0", where=f"config.max_codes.{kind}", fix="give 0 for any number")
    if config.value_encoding not in VALUE_ENCODINGS:
        raise UserError(
            f"unknown encoding {config.value_encoding!r}",
            where="config.value_encoding",
            fix=f"choose one of {', '.join(VALUE_ENCODINGS)}",
        )
    if config.observed_until not in (follow_up.AUTO, follow_up.LAST_EVENT):
        follow_up.end_of_day(config.observed_until, "config.observed_until")
    return VocabularyPolicy(
        preset=_interval_preset(config),
        min_subjects_per_code=config.min_subjects_per_code,
        min_values_per_code=config.min_values_per_code,
        max_codes=config.max_codes.to_dict(),
        value_encoding=config.value_encoding,
        max_texts_per_code=config.max_texts_per_code,
        observed_until=config.observed_until,
    )


def check(config: ml_collections.ConfigDict) -> None:
    """Raise a UserError that names the first key that is unknown, missing, of the wrong type, or makes no sense."""
    _check_keys(config)
    vocabulary_policy(config)
    cohort(config)


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each key of a configuration (KEY or KEY.KEY, as flags name it) with its value."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_keys(config: ml_collections.ConfigDict) -> None:
    # References stay: what is None by default knows by one which type it wants.
    default = dict(flat(get_config().to_dict(preserve_field_references=True)))
    given = dict(flat(config.to_dict()))
    for keys, what in ((given.keys() - default.keys(), "unknown key"), (default.keys() - given.keys(), "missing key")):
        for key in sorted(keys):
            raise UserError(what, where=f"config.{key}", fix="see data_pipeline/build_config.py for the keys")
    for key, known in default.items():
        is_optional = isinstance(known, config_dict.FieldReference)
        wanted, value = known.get_type() if is_optional else type(known), given[key]
        if type(value) is not wanted and not (is_optional and value is None):
            raise UserError(
                f"{value!r} is a {type(value).__name__}", where=f"config.{key}", fix=f"use {wanted.__name__}"
            )


def _interval_preset(config: ml_collections.ConfigDict) -> intervals.IntervalPreset:
    if (config.interval_preset == CUSTOM) != bool(config.interval_bounds):
        raise UserError(
            f"{config.interval_bounds!r} with the preset {config.interval_preset}",
            where="config.interval_bounds",
            fix="give bounds with interval_preset custom, and with no other",
        )
    if config.interval_preset == CUSTOM:
        return intervals.custom(config.interval_bounds)
    if config.interval_preset not in intervals.PRESETS:
        raise UserError(
            f"unknown preset {config.interval_preset!r}",
            where="config.interval_preset",
            fix=f"choose one of {', '.join(intervals.PRESETS)} or {CUSTOM}",
        )
    return intervals.PRESETS[config.interval_preset]
