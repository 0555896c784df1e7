"""Compiled programs kept from one start to the next, in the user's cache, by JAX's persistent compilation cache.

On by default in the programs that compile for long: train, simulate, evaluate. JAX's own variables rule it:
JAX_ENABLE_COMPILATION_CACHE=false turns it off, JAX_COMPILATION_CACHE_DIR puts it elsewhere; COMETJAX_CACHE moves it
with all else that is kept (`data_pipeline.cache`). JAX's key covers the program, the versions of JAX and XLA, flags and
devices, so a hit is what compiling would give: a run's losses are the same bits with and without.

Processes may share the folder. With several processes in one run only the first writes; hosts profit where they all see
the folder.
"""

import hashlib
import os
import pathlib
import time
import zlib
from typing import Any

import jax
from absl import logging

from data_pipeline import cache
from data_pipeline.errors import UserError

# Below this, reading an entry is no faster than compiling.
_MIN_COMPILE_SECONDS = 0.1
_UNUSED_DAYS = 90
# A file this young may still be being written, by a process that shares the folder.
_SETTLED_SECONDS = 60.0
_ENTRIES = "*-cache"  # JAX's names
_CHECKED = "checked"
_ZLIB = b"\x78"


def turn_on() -> None:
    """Let JAX keep and reuse compiled programs from here on. A folder that cannot be used is told in a warning."""
    settings: Any = jax.config  # Any: its attributes are made at run time
    if not settings.jax_enable_compilation_cache:
        return
    if settings.jax_compilation_cache_dir is None:
        try:
            folder = cache.folder("compiled") / _machine()
            folder.mkdir(exist_ok=True)
            tidy(folder)
        except (UserError, OSError) as error:
            logging.warning("compiled programs are not kept: %s", error)
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)


def tidy(folder: pathlib.Path) -> None:
    """Remove entries that a kill or a full disk cut short, and those that nobody read for 90 days.

    JAX compiles anew where it cannot read an entry, with a warning, but never replaces the entry. Only what is newer
    than the last look is looked into.
    """
    marker, now = folder / _CHECKED, time.time()
    checked = marker.stat().st_mtime if marker.exists() else 0.0
    for path in folder.glob(_ENTRIES):
        try:
            status = path.stat()
            unused = now - max(status.st_atime, status.st_mtime) > _UNUSED_DAYS * 86_400
            is_new = checked < status.st_mtime < now - _SETTLED_SECONDS
            if unused or (is_new and not _is_whole(path)):
                path.unlink()
        except FileNotFoundError:  # another process tidies too
            continue
    marker.touch()
    os.utime(marker, (now, now - _SETTLED_SECONDS))


def _is_whole(path: pathlib.Path) -> bool:
    content = path.read_bytes()
    if content and not content.startswith(_ZLIB):  # another compression, of which this knows nothing
        return True
    try:
        zlib.decompress(content)
    except zlib.error:
        return False
    return True


def _machine() -> str:
    """Names the processor: code compiled for one CPU may not run on another, and JAX's key does not tell them apart."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return "any"
    told = {line for line in text.splitlines() if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return hashlib.sha256("\n".join(sorted(told)).encode()).hexdigest()[:12]
