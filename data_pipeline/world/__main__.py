"""Write a synthetic health system's records as a MEDS 0.4 data set.

    python -m data_pipeline.world --out world --patients 6000 --seed 0

Adults enter in 2012-2019 and are observed to death or to the end of 2024: encounters, diagnoses, tests, drugs,
procedures. Expect about 500 tokens a subject and some 10 seconds for 6,000 subjects on two cores. The same arguments
give the same bytes. `--describe` prints the rules that subjects live by and writes nothing.
"""

import pathlib
import time

from absl import flags

from data_pipeline import command_line
from data_pipeline.errors import UserError
from data_pipeline.world import describe, writer

_OUT = flags.DEFINE_string("out", "", "folder to write; must be missing or empty")
_PATIENTS = flags.DEFINE_integer("patients", 6000, "number of subjects, at least 10")
_SEED = flags.DEFINE_integer("seed", 0, "seed of all that is drawn")
_SHARDS = flags.DEFINE_integer("shards", None, "train files; the other splits have an eighth of that, at least one")
_DESCRIBE = flags.DEFINE_boolean("describe", False, "print the rules and write nothing")


def main() -> None:
    """Write the world, or describe it."""
    if _DESCRIBE.value:
        print(describe.rules_text())
        return
    if not _OUT.value:
        raise UserError("is missing", where="--out", fix="name a folder to write, as in --out world")
    start = time.perf_counter()
    out = pathlib.Path(_OUT.value)
    summary = writer.write_world(out, _PATIENTS.value, _SEED.value, _SHARDS.value, progress=True)
    seconds = time.perf_counter() - start
    print(f"{out}: {summary.subjects:,} subjects, {summary.events:,} events, {summary.shards} files, {seconds:.1f} s")


if __name__ == "__main__":
    command_line.run(main)
