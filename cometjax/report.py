"""The evaluation as one HTML file that works offline: tables, inline SVG figures, no script, no network."""

from collections.abc import Mapping, Sequence
from typing import Any

import markupsafe

from cometjax import comparisons, report_fan, report_figures, report_samples, rivals
from cometjax.report_figures import with_interval
from cometjax.report_story import Story
from data_pipeline.html_templates import environment_beside
from data_pipeline.plurals import counted

TEMPLATE = "report.html.j2"
# Below this many rows of a class, percentile intervals are too narrow to be taken at their word.
FEW_ROWS = 10
# Baselines in a sentence that begins with "against".
COMPARED = {"prevalence": "chance, or the best constant amount", **{k: v.lower() for k, v in rivals.TITLES.items()}}
COMPARED |= {"xgboost": "XGBoost"}
_REASONS = {
    "dead_at_index": "dead at the index",
    "inside": "in the midst of a stay",
    "prior_outcome": "had the outcome before",
    "horizon_past_observation": "horizon passes the end of the subject's observation",
    "horizon_past_data": "horizon passes the end of the data",
    "not_in_cohort": "not of the cohort",
    "excluded": "had what is excluded",
    "short_history": "history too short",
    "washout": "had the outcome of late",
    "not_chosen": "another row of the subject was drawn",
    "over_max_rows": "beyond max_rows_per_task",
}
_FOLLOW_UP = {
    "dataset_end": "rows whose horizon passes the data's end are out",
    "observation_end": "rows whose horizon passes the end of the subject's observation are out; of the dead, and of "
    "those of whom it is not known, rows whose horizon passes the data's end",
    "assume_complete": "assumed complete: what is not recorded did not happen",
}
_STOPS = {
    "death": "death",
    "horizon": "horizon reached",
    "length": "out of tokens",
    "timeline_end": "timeline ended",
    "answered": "question answered",
    "unobserved": "observation ended",
}


def render(results: Mapping[str, Any], records: Sequence[Mapping[str, Any]], story: Story | None) -> str:
    """The HTML page.

    Args:
        results: what evaluate() returns (results.json).
        records: the run's metrics.jsonl; may be empty.
        story: the subject drawn; None leaves the section out.
    """
    environment = environment_beside(__file__)
    environment.filters |= {
        "number": number,
        "count": count,
        "percent": percent,
        "with_interval": with_interval,
        "days": days,
        "sentence": comparisons.sentence,
        "counted": counted,
    }
    losses = results["losses"]
    has_best = report_figures.knows_best(results["tasks"])
    names = {"unigram": "unigram_loss", "bigram": "bigram_loss", "entropy floor": "floor"}
    references = {name: losses[key] for name, key in names.items() if key in losses}
    return environment.get_template(TEMPLATE).render(
        results=results,
        run=results["run"],
        losses=losses,
        tasks=results["tasks"],
        few=[n for n, t in results["tasks"].items() if min(t["positives"], t["n"] - t["positives"]) < FEW_ROWS],
        reasons=_REASONS,
        titles=rivals.TITLES,
        compared=COMPARED,
        fitted=[name for name in rivals.TITLES if all(name in task["baselines"] for task in results["tasks"].values())],
        stops=_STOPS,
        follow_up=_FOLLOW_UP,
        loss_figure=_markup(
            report_figures.loss_curves(records, references, "Loss by training step, in total and by token kind")
        )
        if records
        else None,
        forest_figure=_markup(report_figures.forest(results["tasks"], "AUROC of every task with its interval"))
        if results["tasks"]
        else None,
        task_figures={
            name: _markup(report_figures.roc_and_calibration(task, f"ROC and calibration of {name}"))
            for name, task in results["tasks"].items()
        },
        samples_figure=_samples_figure(results["tasks"]),
        story=story,
        story_figures=_story_figures(story) if story else [],
        final_by_kind=_final_by_kind(records, results["run"]["step"], losses),
        has_best=has_best,
        best_unknown=[] if has_best else report_figures.reasons_of_no_best(results["tasks"]),
    )


def text_table(results: Mapping[str, Any]) -> str:
    """The short table for a terminal."""
    losses = results["losses"]
    lines = [
        f"{name:<14}{losses[key]:.4f} nats/token"
        for name, key in (("tuning loss", "tuning_loss"), ("  bigram", "bigram_loss"), ("  unigram", "unigram_loss"))
        if key in losses
    ]
    lines += [f"count models and floor are not told: {losses['corpus_reason']}"] if "corpus_reason" in losses else []
    lines += floor_lines(losses)
    width = max(map(len, [*results["tasks"], *results["amounts"]]), default=0) + 2
    titles = report_figures.columns(results["tasks"])
    if titles:
        heads = "".join(f"{title:<24}" for title in ["AUROC (95% interval)", *titles[1:]])
        lines.append(f"{'task':<{width}}{heads}{'rows':>6}{'positive':>10}")
    for name, task in results["tasks"].items():
        entries = report_figures.predictors(task)
        columns = "".join(f"{with_interval(entries[title]):<24}" for title in titles)
        lines.append(f"{name:<{width}}{columns}{task['n']:>6}{task['positives']:>10}")
    lines += [
        f"{name}: of {task['unseen_horizon']:,} of {task['n']:,} rows no future reaches the horizon: risks are too low"
        for name, task in results["tasks"].items()
        if task["unseen_horizon"]
    ]
    lines += [
        f"{name}: of {task['observed_in_part']:,} of {task['n']:,} rows observation ended before the window did: they "
        "count as 'did not happen' though nobody looked (censoring)"
        for name, task in (results["tasks"] | results["amounts"]).items()
        if task["observed_in_part"]
    ]
    lines += [
        f"against {COMPARED[name]}: {comparisons.sentence(summary)} (Holm, {summary['level']:.0%})"
        for name, summary in results["comparisons"].items()
    ]
    if results["amounts"]:
        lines.append(
            f"{'amount':<{width}}{'recorded: mean (median)':<26}{'predicted: mean (median)':<26}{'rows':>6}"
            f"{'MAE':>9}{'RMSLE':>8}{'C':>7}"
        )
    for name, task in results["amounts"].items():
        recorded, predicted = (
            f"{task[f'mean_{kind}']:.2f} ({task[f'median_{kind}']:.2f})" for kind in ("recorded", "predicted")
        )
        concordance = "-" if task["concordance"] is None else f"{task['concordance']:.3f}"
        lines.append(
            f"{name:<{width}}{recorded:<26}{predicted:<26}{task['n']:>6}"
            f"{task['mae']:>9.3f}{task['rmsle']:>8.3f}{concordance:>7}"
        )
    lines += [f"cannot run: {name}: {reason}" for name, reason in results["cannot_run"].items()]
    return "\n".join(lines)


def floor_lines(losses: Mapping[str, Any]) -> list[str]:
    """What a terminal is told of a world's entropy floor; nothing where there is none."""
    if "floor" not in losses:
        return [f"  floor       not known: {losses['floor_reason']}"] if "floor_reason" in losses else []
    kinds = sorted(losses["excess_by_kind"].items(), key=lambda item: -item[1])
    return [
        f"{'  floor':<14}{losses['floor']:.4f} nats/token, the model is {losses['excess']:.4f} above it",
        "    above it by kind: " + ", ".join(f"{kind.lower()} {excess:.3f}" for kind, excess in kinds),
    ]


def _samples_figure(tasks: Mapping[str, Mapping[str, Any]]) -> markupsafe.Markup | None:
    figure = report_samples.by_samples(tasks, "Scores of every task by the number of samples")
    return None if figure is None else _markup(figure)


def _story_figures(story: Story) -> list[markupsafe.Markup]:
    return [
        _markup(report_fan.fan(story, "History by kind of event, and one strip for each sampled future")),
        _markup(report_fan.counts_and_incidence(story, "Cumulative events, and cumulative incidence of the outcomes")),
    ]


def _final_by_kind(records: Sequence[Mapping[str, Any]], step: int, losses: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The last tuning loss by kind, most tokens first, with the floor and what is above it where they are known."""
    tuning = [record for record in records if record.get("split") == "tuning" and record["step"] <= step]
    if not tuning:
        return []
    last = tuning[-1]
    table = [
        {"kind": key.removeprefix("loss/"), "loss": value, "tokens": last.get(f"tokens/{key.removeprefix('loss/')}")}
        for key, value in last.items()
        if key.startswith("loss/") and value is not None
    ]
    for row in table:
        row |= {name: losses.get(f"{name}_by_kind", {}).get(row["kind"]) for name in ("floor", "excess")}
    return sorted(table, key=lambda row: -(row["tokens"] or 0))


def _markup(svg: str) -> markupsafe.Markup:
    # Figures are made here, from numbers and escaped text: safe as they are.
    return markupsafe.Markup(svg)


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"  # noqa: RUF001  (a dash for "none", as in print)


def count(value: float | None) -> str:
    """A whole number with its thousands apart, or a dash."""
    return "–" if value is None else f"{value:,.0f}"  # noqa: RUF001


def percent(value: float | None) -> str:
    """A share in percent, or a dash."""
    return "–" if value is None else f"{100 * value:.1f}%"  # noqa: RUF001


def days(value: float) -> str:
    """Days, or years where they are many."""
    if value < 365:
        return f"{value:g} day{'' if value == 1 else 's'}"
    years = f"{value / 365:.3g}"
    return f"{years} year{'' if years == '1' else 's'}"
