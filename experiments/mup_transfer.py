"""Whether the learning rate that is best for a narrow model is best for a wide one, by parameterization.

    python -m experiments.mup_transfer --corpus runs/demo/corpus \\
        --out runs/mup --figure docs/mup.svg

Trains models of several widths (two layers, all else in proportion to the width) at learning rates a factor of two
apart, each on the same batches and with the schedule of `cometjax.train`, once as `standard` and once as `mup` with the
narrowest width but one as its base. OUT/runs.jsonl gets a line a run, and a stopped experiment goes on where it was;
the figure shows the tuning loss over the learning rate, a curve a width. Ends with a line of JSON: each width's best
rate (the minimum of a parabola through the best rate tried and its neighbours), and by how many octaves the best rate
moves from the narrowest to the widest. Expect ten to fifteen minutes on two busy cores. docs/mup.md says what was seen.

W widths   R learning rates
"""

import functools
import itertools
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import matplotlib
import ml_collections
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from cometjax.config import default_config
from cometjax.metrics import LossTotals
from cometjax.model import ModelConfig
from cometjax.optimizer import learning_rate_schedule, make_optimizer
from cometjax.parameterization import PARAMETERIZATIONS
from cometjax.train_step import TokenTables, init_state, make_evaluation_step, make_train_step
from data_pipeline import command_line
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from data_pipeline.loader import LoaderConfig, evaluation_batches, train_batches
from data_pipeline.svg import SERIES, STYLE, WIDTH

HEAD_DIM = 32
TUNING_BATCHES = 12
# What belongs to one point of the figure.
Run = dict[str, Any]


def config_of(width: int, parameterization: str, base: int, steps: int) -> ml_collections.ConfigDict:
    """The configuration of one width, with a peak learning rate of 1, by which the schedule is scaled."""
    config = default_config()
    heads = width // HEAD_DIM
    config.model.update(
        layers=2, width=width, heads=heads, kv_heads=heads, head_dim=HEAD_DIM, mlp_width=4 * width,
        parameterization=parameterization, mup_base_width=base,
    )  # fmt: skip
    config.optimizer.update(learning_rate=1.0, warmup_steps=steps // 10)
    config.train.update(steps=steps, batch_rows=8, row_length=128)
    return config


def make_trial(config: ml_collections.ConfigDict, corpus: Corpus) -> Callable[[float], float]:
    """A function learning rate → tuning loss (nats per token) of a model trained from scratch; compiled once."""
    model = ModelConfig.from_config(config.model, len(corpus.vocabulary))
    tables = TokenTables.from_vocabulary(corpus.vocabulary, model.vocab_size)
    optimizer, schedule = make_optimizer(config), learning_rate_schedule(config)
    train, tuning = _batches(config, corpus)

    @jax.jit
    def step(state: Any, batch: Any, peak: jax.Array) -> Any:
        return make_train_step(model, tables, optimizer, lambda number: peak * schedule(number))(state, batch)[0]

    evaluate = jax.jit(make_evaluation_step(model, tables))

    def trial(peak: float) -> float:
        state = init_state(model, optimizer, config.seed)
        for batch in train:
            state = step(state, batch, peak)
        totals = LossTotals()
        for batch in tuning:
            totals.add(jax.device_get(evaluate(state.params, batch)))
        return totals.loss

    return trial


def _batches(config: ml_collections.ConfigDict, corpus: Corpus) -> tuple[list[Any], list[Any]]:
    loader = LoaderConfig(config.train.batch_rows, config.train.row_length, config.seed)
    endless: Any = train_batches(corpus.split("train"), loader)
    train = list(itertools.islice(endless, config.train.steps))
    endless.close()
    return train, list(evaluation_batches(corpus.split("tuning"), loader, max_batches=TUNING_BATCHES))


def runs(corpus: Corpus, widths: Sequence[int], rates: Sequence[float], steps: int, file: pathlib.Path) -> list[Run]:
    """Every run, from `file` where it has been made before, else made now and appended to it.

    Up to the base width all rates are tried; a wider model, which takes most of the time, starts from the rate that was
    best for the width before, and tries its neighbours until the lowest loss has one on either side; and the rate that
    was best for the narrowest, to see what carrying it over costs.

    Raises UserError where `file` holds runs of another setting, or at other rates.
    """
    base = widths[1]
    setting = {"steps": steps, "base": base, "corpus": corpus.fingerprint}
    done = _read(file, setting, rates)
    for parameterization, width in itertools.product(PARAMETERIZATIONS, widths):
        make = functools.cache(functools.partial(make_trial, config_of(width, parameterization, base, steps), corpus))
        while rate := _next_rate(done, parameterization, width, widths, rates):
            start = time.perf_counter()
            run = {"width": width, "parameterization": parameterization, "rate": rate, "tuning_loss": make()(rate)}
            run |= setting | {"seconds": time.perf_counter() - start}
            with file.open("a") as lines:
                lines.write(json.dumps(run) + "\n")
            print(f"{parameterization:9} width {width:4}  rate {rate:.2e}  tuning loss {run['tuning_loss']:.4f}")
            done.append(run)
    return done


def _next_rate(
    done: Sequence[Run], parameterization: str, width: int, widths: Sequence[int], rates: Sequence[float]
) -> float | None:
    tried = _points(done, parameterization, width)
    if width <= widths[1]:
        return next((rate for rate in rates if rate not in tried), None)
    if not tried:
        return _lowest(_points(done, parameterization, widths[widths.index(width) - 1]))
    lowest = rates.index(_lowest(tried))
    wanted = [*rates[max(0, lowest - 1) : lowest + 2], _lowest(_points(done, parameterization, widths[0]))]
    return next((rate for rate in wanted if rate not in tried), None)


def _lowest(points: Mapping[float, float]) -> float:
    return min(points, key=points.__getitem__)


def _read(file: pathlib.Path, setting: Run, rates: Sequence[float]) -> list[Run]:
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for run in done:
        if any(run[key] != value for key, value in setting.items()):
            raise UserError("holds runs of another setting", where=str(file), fix="choose another --out")
        if run["rate"] not in rates:
            fix = f"name {math.log2(run['rate']):g} in --octaves too, or choose another --out"
            raise UserError(f"holds a run at a learning rate of {run['rate']:g}", where=str(file), fix=fix)
    return done


def _points(done: Sequence[Run], parameterization: str, width: int) -> dict[float, float]:
    """Learning rate → tuning loss, infinite where it diverged."""
    # At the base width both parameterizations are the same bits (tests/cometjax/parameterization_test.py).
    return {
        r["rate"]: r["tuning_loss"] if math.isfinite(r["tuning_loss"]) else math.inf
        for r in done
        if r["width"] == width and (r["parameterization"] == parameterization or width == r["base"])
    }


def curve(done: Sequence[Run], parameterization: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Learning rates, ascending, and the tuning loss at each; what diverged is left out."""
    points = _points(done, parameterization, width)
    pairs = [(rate, loss) for rate, loss in sorted(points.items()) if math.isfinite(loss)]
    rates_R, losses_R = (np.array(values) for values in zip(*pairs, strict=True))
    return rates_R, losses_R


def best_rate(rates_R: np.ndarray, losses_R: np.ndarray) -> tuple[float, float]:
    """(rate, loss) at the minimum of a parabola in log rate through the lowest point and its neighbours.

    At an end of the range there is no such parabola, and the end itself is returned.
    """
    lowest = int(np.argmin(losses_R))
    if lowest in (0, len(rates_R) - 1):
        return float(rates_R[lowest]), float(losses_R[lowest])
    near = slice(lowest - 1, lowest + 2)
    a, b, c = np.polyfit(np.log2(rates_R[near]), losses_R[near], 2)
    return float(2 ** (-b / (2 * a))), float(c - b * b / (4 * a))


def summary(done: Sequence[Run], widths: Sequence[int]) -> dict[str, Any]:
    """Best rate by width, and octaves between the narrowest's and the widest's, of each parameterization."""
    found: dict[str, Any] = {}
    for parameterization in PARAMETERIZATIONS:
        best = {width: best_rate(*curve(done, parameterization, width)) for width in widths}
        narrowest, widest = (_points(done, parameterization, width) for width in (widths[0], widths[-1]))
        found[parameterization] = {
            "best_rate": {str(width): rate for width, (rate, _) in best.items()},
            "best_loss": {str(width): loss for width, (_, loss) in best.items()},
            "moved_octaves": math.log2(best[widths[-1]][0] / best[widths[0]][0]),
            "cost_of_the_narrowest_widths_rate": widest[_lowest(narrowest)] - min(widest.values()),
        }
    return found


def draw(done: Sequence[Run], widths: Sequence[int], file: pathlib.Path) -> None:
    """Write the figure: a panel a parameterization, a curve a width, its minimum marked."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "mup"}):
        figure = Figure(figsize=(WIDTH, 3.4))
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, parameterization in zip(panels, PARAMETERIZATIONS, strict=True):
            for width, (colour, style, marker) in zip(widths, SERIES, strict=False):
                rates_R, losses_R = curve(done, parameterization, width)
                axes.plot(rates_R, losses_R, color=colour, linestyle=style, label=f"width {width}")
                axes.plot(*best_rate(rates_R, losses_R), marker, color=colour, markersize=7)
            axes.set(title=parameterization, xlabel="peak learning rate", xscale="log")
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(LogLocator(base=4))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:.2g}"))
        panels[0].set_ylabel("tuning loss (nats per token)")
        # Rates at which training fails would press the minima flat.
        low = min(best_rate(*curve(done, p, width))[1] for p in PARAMETERIZATIONS for width in widths)
        panels[0].set_ylim(low - 0.05, low + 1.6)
        panels[1].legend()
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=150)


def _define_flags() -> None:
    flags.DEFINE_string("corpus", None, "a build's folder", required=True)
    flags.DEFINE_string("out", None, "folder of runs.jsonl; a stopped experiment in it goes on", required=True)
    flags.DEFINE_string("figure", "", "file to draw (.svg or .png); default: OUT/mup.svg")
    flags.DEFINE_list("widths", "32,64,128", f"multiples of {HEAD_DIM}, ascending; the second is mup's base")
    flags.DEFINE_integer("steps", 160, "of each run, 1,024 tokens each")
    flags.DEFINE_list("octaves", "-11,-10,-9,-8,-7,-6,-5,-4", "powers of two: the peak learning rates")


def _numbers(name: str, valid: Callable[[int], bool], fix: str) -> list[int]:
    try:
        numbers = sorted(int(text) for text in flags.FLAGS[name].value or ())
    except ValueError as error:
        raise UserError("not all are whole numbers", where=f"--{name}") from error
    if len(set(numbers)) < 3 or not all(map(valid, numbers)):
        raise UserError(f"{numbers} cannot be used", where=f"--{name}", fix=fix)
    return numbers


def main() -> None:
    """Run what is missing, draw, and say where the best rates lie."""
    values = flags.FLAGS
    widths = _numbers("widths", lambda width: width % HEAD_DIM == 0, f"give three or more multiples of {HEAD_DIM}")
    octaves = _numbers("octaves", lambda octave: -30 < octave < 4, "give three or more between -30 and 4")
    out = pathlib.Path(values.out)
    out.mkdir(parents=True, exist_ok=True)
    corpus = Corpus.open(values.corpus)
    done = runs(corpus, widths, [2.0**octave for octave in octaves], values.steps, out / "runs.jsonl")
    draw(done, widths, pathlib.Path(values.figure or out / "mup.svg"))
    print(json.dumps({"steps": values.steps, "base_width": widths[1]} | summary(done, widths)))


if __name__ == "__main__":
    command_line.run(main, _define_flags)
