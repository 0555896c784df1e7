"""What the synthetic world knows, beside a model: the entropy floor under its loss, the best scores of its tasks.

Only of data of data_pipeline.world. Of any other nothing is computed, and nothing said.

N rows of a task
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from cometjax import amount_results, scores
from cometjax.estimators import KEYS
from cometjax.labels import VALUE_COLUMN
from cometjax.tasks import Task
from data_pipeline import meds, prompts
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from data_pipeline.mixture import Mixture
from data_pipeline.vocabulary import Vocabulary
from data_pipeline.world import risks, scoring

_ROW = list(KEYS)
_NOTHING = {"auroc": None, "low": None, "high": None, "auroc_share": None}


@dataclasses.dataclass(frozen=True)
class TrueRisks:
    """True risks of a task's rows, or the best predictions of amounts (risks.Question), by `draws` futures of each.

    `halves_2xN`: the same by either half of the futures; their mean is the risk. Noise in a risk lowers its AUROC, and
    twice as much with half of the futures: so the halves tell how far below the ceiling the whole is.
    """

    halves_2xN: np.ndarray
    draws: int

    @property
    def risk_N(self) -> np.ndarray:
        """The true risks or best predictions, float64 [N]."""
        return self.halves_2xN.mean(axis=0)


def loss_floor(corpus: Corpus | Mixture, tuning: Mapping[str, Any], *, progress: bool = False) -> dict[str, Any]:
    """The floor of the tuning split, and what a model's loss on it is more, nats per target; {} if it is no world's.

    A record's targets are all its tokens but the first, each once, whether one row holds it or several (`packing`), and
    special tokens too; the floor is of the same. That both counted the same is checked kind by kind.

    Args:
        corpus: that the model was trained with.
        tuning: the line of metrics.jsonl with the model's loss (`loss`, `loss/KIND`, `tokens/KIND`).

    Returns floor, excess, floor_by_kind and excess_by_kind; of a world whose truth is not known floor_reason alone.
    """
    if not isinstance(corpus, Corpus) or not scoring.is_world(corpus.manifest["source"]["name"]):
        return {}
    try:
        floor = scoring.split_floor(corpus, progress=progress)
    except UserError as error:
        return {"floor_reason": str(error)}
    counted = {key.removeprefix("tokens/"): value for key, value in tuning.items() if key.startswith("tokens/")}
    if counted != floor.targets_by_kind:
        return {"floor_reason": f"the loss is of {sum(counted.values()):,} of the split's {floor.targets:,} targets"}
    return {
        "floor": floor.floor,
        "excess": tuning["loss"] - floor.floor,
        "floor_by_kind": floor.floor_by_kind,
        "excess_by_kind": {kind: tuning[f"loss/{kind}"] - value for kind, value in floor.floor_by_kind.items()},
    }


def true_risks(
    dataset: meds.MedsDataset,
    vocabulary: Vocabulary,
    tasks: Sequence[Task],
    rows: Mapping[str, pl.DataFrame],
    *,
    draws: int,
    seed: int,
    progress: bool = False,
) -> dict[str, TrueRisks | str]:
    """By task the true risks of its rows given the whole history, or why they are not known; {} if it is no world's.

    Args:
        dataset, vocabulary: the data set that is asked, and the vocabulary that its histories are read with.
        tasks: what to answer.
        rows: by task, [subject_id, prediction_time].
        draws: futures of each row; even. 0: nothing is computed.
        seed: of the futures.
    """
    if not draws or not scoring.is_world(dataset.name):
        return {}
    if draws % 2:
        raise UserError(f"{draws} is odd", where="true_risk_draws", fix="give an even number: halves are compared")
    reasons = {task.name: _obstacle(task, dataset) for task in tasks}
    known = [task for task in tasks if not reasons[task.name]]
    found: dict[str, TrueRisks | str] = {name: reason for name, reason in reasons.items() if reason}
    if not known:
        return found
    asked = pl.concat([rows[task.name].select(*_ROW, days=pl.lit(float(task.horizon_days))) for task in known])
    longest = asked.group_by(_ROW).agg(pl.col("days").max()).sort(_ROW)
    tables = []
    for (days,), group in longest.group_by("days", maintain_order=True):
        # Whom somebody asks for so long; what others are asked within that costs nothing more.
        questions = {t.name: risks.Question(t.outcome, t.horizon_days, t.until, t.kind) for t in known}
        questions = {name: question for name, question in questions.items() if question.horizon_days <= days}
        try:
            halves = _halves(dataset, vocabulary, group, questions, draws, seed, progress)
        except UserError as error:
            return found | {task.name: str(error) for task in known}
        tables.append(pl.concat([group.select(_ROW), halves], how="horizontal"))
    table = pl.concat(tables, how="diagonal")
    for task in known:
        own = rows[task.name].select(_ROW).join(table, on=_ROW, how="left", maintain_order="left")
        halves_2xN = np.stack([own.get_column(f"{task.name}//{half}").to_numpy() for half in (0, 1)])
        unreadable = int(np.isnan(halves_2xN).any(axis=0).sum())
        found[task.name] = (
            f"{unreadable} histories hold what the world cannot write" if unreadable else TrueRisks(halves_2xN, draws)
        )
    return found


def _obstacle(task: Task, dataset: meds.MedsDataset) -> str:
    if reason := scoring.data_refusal(dataset.name, dataset.version):
        return reason
    complete = task.censoring == "assume_complete"
    return "true risks are of subjects observed throughout the horizon" if complete else ""


def _halves(
    dataset: meds.MedsDataset,
    vocabulary: Vocabulary,
    rows: pl.DataFrame,
    questions: Mapping[str, risks.Question],
    draws: int,
    seed: int,
    progress: bool,
) -> pl.DataFrame:
    """Columns TASK//0 and TASK//1 for each row: risks by either half of the futures."""
    histories = prompts.build_prompts(dataset, rows, vocabulary)
    risks_2xNxQ = risks.true_risks_by_part(
        histories, vocabulary, list(questions.values()), parts=2, draws=draws, seed=seed, progress=progress
    )
    return pl.DataFrame(
        {
            f"{name}//{half}": risks_NxQ[:, index]
            for half, risks_NxQ in enumerate(risks_2xNxQ)
            for index, name in enumerate(questions)
        }
    )


def score_beside(truth: TrueRisks | str, scored: pl.DataFrame, *, resamples: int, seed: int) -> dict[str, Any]:
    """What results.json says of a task's true risks ("best") beside the model's on the same rows.

    `scored`: [subject_id, boolean_value, risk (the model's)]; `resamples`, `seed`: as for the other scores, so that
    differences are paired.

    Returns auroc, low, high; `shortfall` (how far the AUROC of so many draws is expected to be below that of endlessly
    many: right on average, rough on few rows, where it can be negative); draws; mean_risk; auroc_share: (AUROC - 0.5) /
    (best AUROC - 0.5) of the model with its paired interval; mean_absolute_error of its risks; reason where something
    can't be given.
    """
    if isinstance(truth, str):
        return _NOTHING | {"reason": truth}
    labels_N = scored.get_column("boolean_value").to_numpy().astype(np.float64)
    risks_N = scored.get_column("risk").to_numpy()
    drawn = scores.resample_subjects(scored.get_column("subject_id").to_numpy(), resamples, seed)
    best = scores.interval(scores.auroc_weighted, labels_N, truth.risk_N, drawn)
    if best.value is None:
        return _NOTHING | {"reason": best.reason}
    ones_1xN = np.ones((1, len(labels_N)))
    by_half = [float(scores.auroc_weighted(labels_N, half_N, ones_1xN)[0]) for half_N in truth.halves_2xN]

    def share(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
        above_R = scores.auroc_weighted(labels, truth.risk_N, weights) - 0.5
        gained_R = scores.auroc_weighted(labels, predictions, weights) - 0.5
        # Where the truth itself does no better than chance, there is nothing to have a share in.
        return np.divide(gained_R, above_R, out=np.full(len(above_R), np.nan), where=above_R > 0)

    return {
        "auroc": best.value,
        "low": best.low,
        "high": best.high,
        "reason": best.reason,
        "shortfall": best.value - float(np.mean(by_half)),
        "draws": truth.draws,
        "mean_risk": float(truth.risk_N.mean()),
        "auroc_share": None
        if best.value <= 0.5
        else dataclasses.asdict(scores.interval(share, labels_N, risks_N, drawn)),
        "mean_absolute_error": float(np.abs(risks_N - truth.risk_N).mean()),
        "roc": dict(scores.roc_curve(labels_N, truth.risk_N)),
    }


def score_amounts_beside(
    truth: TrueRisks | str, scored: pl.DataFrame, task: Task, constant: float | None, *, resamples: int, seed: int
) -> dict[str, Any]:
    """What results.json says of the best predictions of a count or duration ("best") beside the model's.

    Args:
        truth: of the rows.
        scored: [subject_id, the label, mean, median (the model's)].
        task: a count is scored by RMSLE, a duration by the mean absolute error.
        constant: the best constant by the training rows, in the same score; None: there were none.
        resamples, seed: as for the other scores, so that differences are paired.

    Returns rmsle or mae with _low and _high; shortfall (how far the error of so many draws is expected to be above that
    of endlessly many), draws; rmsle_share or mae_share: (constant's error - the model's) / (constant's error - best);
    reason where something can't be given.
    """
    name = amount_results.MAIN[task.kind]
    column, score = amount_results.SCORES[name]
    if isinstance(truth, str):
        return {name: None, f"{name}_low": None, f"{name}_high": None, f"{name}_share": None, "reason": truth}
    target_N = scored.get_column(VALUE_COLUMN[task.kind]).to_numpy().astype(np.float64)
    drawn = scores.resample_subjects(scored.get_column("subject_id").to_numpy(), resamples, seed)
    best = scores.interval(score, target_N, truth.risk_N, drawn, needs_classes=False)
    ones_1xN = np.ones((1, len(target_N)))
    by_half = [float(score(target_N, half_N, ones_1xN)[0]) for half_N in truth.halves_2xN]
    said = {name: best.value, f"{name}_low": best.low, f"{name}_high": best.high, "reason": "", "draws": truth.draws}
    said |= {"shortfall": float(np.mean(by_half)) - float(best.value or 0.0), f"{name}_share": None}
    if constant is None:
        return said
    constant_N = np.full(len(target_N), constant)
    if not score(target_N, constant_N, ones_1xN)[0] > score(target_N, truth.risk_N, ones_1xN)[0]:
        return said

    def share(targets: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
        at_stake_R = score(targets, constant_N, weights) - score(targets, truth.risk_N, weights)
        gained_R = score(targets, constant_N, weights) - score(targets, predictions, weights)
        # Where the truth itself does no better than a constant, there is nothing to have a share in.
        return np.divide(gained_R, at_stake_R, out=np.full(len(gained_R), np.nan), where=at_stake_R > 0)

    found = scores.interval(share, target_N, scored.get_column(column).to_numpy(), drawn, needs_classes=False)
    return said | {f"{name}_share": None if found.value is None or np.isnan(found.value) else dataclasses.asdict(found)}
