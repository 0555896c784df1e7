"""A run's folder: what it was started with, and the refusal to go on with something else.

workdir/
  config.json       the configuration
  vocabulary.json   the corpus's vocabulary
  corpus.json       which corpus: fingerprints, source
  continued_from.json   of a run that began with another's checkpoint, which: cometjax.continuation
  environment.json  with what it was computed: cometjax.environment
  checkpoints/      cometjax.checkpoints
  metrics.jsonl, tensorboard/   cometjax.metrics_writer
  profile/          traces, where asked for: cometjax.profiling
  result.json       written last: a finished run
  lock              held while a run writes here: a second one is refused
"""

import contextlib
import fnmatch
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
from absl import logging

from data_pipeline import file_lock
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from data_pipeline.mixture import Mixture

CONFIG = "config.json"
CORPUS = "corpus.json"
VOCABULARY = "vocabulary.json"
ORIGIN = "continued_from.json"
RESULT = "result.json"
LOCK = "lock"
# What a folder may hold that no run has begun in: of one that was killed before its config.json was there, what the
# launch writes (Slurm opens the job's log first), a volume's own, and one mounted for the checkpoints (which say
# themselves whose they are). A corpus has split folders besides.
_BEFORE_A_RUN = (
    *(LOCK, VOCABULARY, CORPUS, ORIGIN, "shared.mark", "*.tmp"),
    *("*.log", "*.out", "*.err", ".*", "lost+found", "checkpoints"),
)
# How long a run waits for another to leave. Of a machine that died, a network file system keeps the lock until its
# lease ends: 90 seconds with Linux's NFS server, if nobody changed it.
LOCK_SECONDS = 120.0

# A resumed run may change these: they say how and how often, not what is computed. (`corpus` is a path: its
# fingerprint decides. train.steps is not among them, for the learning rate's decay spans it.)
FREE_KEYS = (
    "corpus",
    "loader.",
    "mesh.",
    "model.attention",
    "model.param_dtype",
    "model.remat",
    "model.scan_layers",
    "train.checkpoint_every",
    "train.checkpoint_minutes",
    "train.eval_batches",
    "train.eval_every",
    "train.keep_best",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.last_eval_batches",
    "train.log_every",
    "train.max_skipped_steps",
    "train.microbatches",
    "train.on_checkpoint_error",
    "train.verify_checkpoints",
    # An intervention: after a stop for spikes, the same run may go on with another threshold.
    "train.spike_threshold",
)
_OTHERWISE = "choose another --workdir"
# What an older version, which had no such keys, did.
_BEFORE_THEIR_TIME = {"continue_from": "", "optimizer.stable_steps": 0}


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
    """Hold the workdir, made when missing, for this process alone: two runs would delete each other's checkpoints.

    Raises UserError when it is another's folder, cannot be written, or another process still holds it after
    LOCK_SECONDS.
    """
    refuse_foreign(workdir)
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(workdir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _wait_for_lock(descriptor, workdir)
        yield
    finally:
        os.close(descriptor)


def refuse_foreign(workdir: pathlib.Path) -> None:
    """Raise UserError for a folder with files that are no run's: a corpus, say, has files of the same names."""
    with contextlib.suppress(FileNotFoundError):
        try:
            names = [path.name for path in workdir.iterdir()]
        except PermissionError:
            return  # it is told with the writing
        except NotADirectoryError:
            if not workdir.exists():
                return  # something above it is a file: told with the writing too
            raise UserError("is a file", where=str(workdir), fix="give a folder, --workdir=DIR") from None
        foreign = [name for name in names if not any(fnmatch.fnmatchcase(name, known) for known in _BEFORE_A_RUN)]
        # Asked last: another process of this run may begin it meanwhile.
        if foreign and not (workdir / CONFIG).exists():
            raise UserError(
                f"holds {min(foreign)} and is no run's folder, for there is no {CONFIG}",
                where=str(workdir),
                fix="choose a new or empty --workdir",
            )


def _wait_for_lock(descriptor: int, workdir: pathlib.Path) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    told = False
    while not file_lock.take(descriptor, workdir):
        if time.monotonic() >= deadline:
            fix = "wait for it or choose another --workdir"
            raise UserError("another process trains here", where=str(workdir), fix=fix)
        if not told:
            told = True
            logging.warning("%s: another process trains here; waiting %.0f s for its end", workdir, LOCK_SECONDS)
        time.sleep(0.2)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Turn a full disk, a place that is read-only and the like into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror})",
            where=str(path),
            fix="make room or get the rights and start again with the same --workdir, or choose another",
        ) from error


def open_workdir(
    workdir: pathlib.Path,
    config: ml_collections.ConfigDict,
    corpus: Corpus | Mixture,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Begin a new workdir, or check that this one was started with the same corpus, vocabulary and configuration.

    `origin`: of a new one, what `ORIGIN` is to hold; None: it continues no other run.

    Raises UserError naming what differs, with both values, or what cannot be written.
    """
    new_config = _through_json(config.to_dict())
    new_corpus = {
        "fingerprint": corpus.fingerprint,
        "vocabulary_fingerprint": corpus.vocabulary.fingerprint,
        "source": corpus.manifest.get("source"),
    }
    old_config = None
    if (workdir / CONFIG).exists():
        old_config = read_json(workdir / CONFIG)
        _refuse_other_corpus(str(workdir), read_json(workdir / CORPUS), new_corpus)
        otherwise = f"{_OTHERWISE} (config.continue_from={workdir} goes on there with another schedule)"
        _refuse_other_config(str(workdir), old_config, new_config, otherwise=otherwise)
    with writing(workdir):
        if old_config is None:
            write_text(workdir / VOCABULARY, corpus.vocabulary.to_json())
            write_json(workdir / CORPUS, new_corpus)
            if origin is None:
                (workdir / ORIGIN).unlink(missing_ok=True)  # of a start that was killed here
            else:
                write_json(workdir / ORIGIN, origin)
        # Written last: a workdir with a config.json has the rest. As it is, a full disk is no matter.
        if new_config != old_config:
            write_json(workdir / CONFIG, new_config)


def refuse_other_run(
    where: str,
    metadata: Mapping[str, Any],
    config: ml_collections.ConfigDict,
    corpus: Corpus | Mixture,
    *,
    free_keys: Sequence[str] = FREE_KEYS,
    otherwise: str = _OTHERWISE,
) -> None:
    """Raise UserError, naming what differs with both values, unless a checkpoint's metadata are of this very run.

    Keys among `free_keys` (or below one that ends with a point) may differ; `otherwise` is what to do if others must.
    """
    new = {"fingerprint": corpus.fingerprint, "vocabulary_fingerprint": corpus.vocabulary.fingerprint}
    old = {"fingerprint": metadata.get("corpus_fingerprint"), **metadata}
    _refuse_other_corpus(where, old, new, otherwise)
    _refuse_other_config(where, metadata["config"], _through_json(config.to_dict()), free_keys, otherwise)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object of the workdir; raises UserError when the file is missing or broken."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError("cannot be read", where=str(path), fix="choose another --workdir") from error
    return dict(content)


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object under a temporary name, renamed when whole."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a text file under a temporary name, renamed when whole."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _refuse_other_corpus(
    where: str, old: Mapping[str, Any], new: Mapping[str, Any], otherwise: str = _OTHERWISE
) -> None:
    # The corpus's fingerprint covers the vocabulary's: the narrower one is named first.
    for key, name in (("vocabulary_fingerprint", "vocabulary"), ("fingerprint", "corpus")):
        if old.get(key) != new[key]:
            raise UserError(
                f"was started with {name} {str(old.get(key))[:12]}, and --config.corpus has {name} {new[key][:12]}",
                where=where,
                fix=f"give the corpus that it was started with, or {otherwise}",
            )


def _refuse_other_config(
    where: str,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    free_keys: Sequence[str] = FREE_KEYS,
    otherwise: str = _OTHERWISE,
) -> None:
    old_flat, new_flat = _BEFORE_THEIR_TIME | _flatten(old), _flatten(new)
    differing = [
        f"{key} is {new_flat.get(key, 'absent')!r} but was {old_flat.get(key, 'absent')!r}"
        for key in sorted(old_flat.keys() | new_flat.keys())
        if old_flat.get(key, "absent") != new_flat.get(key, "absent")
        and not any(key == free or (free.endswith(".") and key.startswith(free)) for free in free_keys)
    ]
    if differing:
        raise UserError(
            f"was started with another configuration: {', '.join(differing)}",
            where=where,
            fix=f"take the old values to go on, or {otherwise}",
        )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _through_json(content: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(content)))
