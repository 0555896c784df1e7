"""The report renders offline from plausible results, from almost nothing, and shows no subject id."""

import html.parser
import re

import numpy as np
import pytest

from cometjax import report, scores
from cometjax.report_story import DatedEvent, Story, Strip


def made_up_scores(rng: np.random.Generator, labels_N: np.ndarray, skill: float) -> dict:
    risk_N = np.clip(
        labels_N.mean() + skill * (labels_N - labels_N.mean()) + 0.16 * rng.normal(size=len(labels_N)), 0, 1
    )
    risk_N = np.round(16 * risk_N) / 16
    drawn = scores.resample_subjects(np.arange(len(labels_N)), 200, 0)
    auroc = scores.interval(scores.auroc_weighted, labels_N, risk_N, drawn)
    table, error = scores.calibration(labels_N, risk_N, np.arange(len(labels_N)))
    return {
        "auroc": auroc.value,
        "low": auroc.low,
        "high": auroc.high,
        "reason": auroc.reason,
        "auprc": 0.41,
        "auprc_low": 0.3,
        "auprc_high": 0.5,
        "brier": 0.11,
        "brier_low": 0.1,
        "brier_high": 0.12,
        "ece": error,
        "calibration": table,
        "calibration_slope": {"value": 0.81, "low": 0.55, "high": 1.12, "reason": ""},
        "calibration_intercept": {"value": -0.2, "low": None, "high": None, "reason": "fewer"},
        "roc": dict(scores.roc_curve(labels_N, risk_N)),
    }


def made_up_task(seed: int, rate: float, horizon_days: float, description: str, rows: int = 300) -> dict:
    rng = np.random.default_rng(seed)
    labels_N = (rng.random(rows) < rate).astype(float)
    rival = {
        **made_up_scores(rng, labels_N, 0.18),
        "features": 412,
        "inverse_penalty": 0.01,
        "training_rows": 9_812,
        "training_positives": 1_033,
        "auroc_gain_of_model": {"value": 0.021, "low": -0.034, "high": 0.071, "reason": ""},
    }
    return {
        **made_up_scores(rng, labels_N, 0.22),
        "description": description,
        "outcome": "DEATH",
        "horizon_days": horizon_days,
        "censoring": "dataset_end",
        "n": rows,
        "subjects": rows,
        "positives": int(labels_N.sum()),
        "prevalence": float(labels_N.mean()),
        "mean_risk": rate,
        "mean_standard_error": 0.071,
        "reliability": 0.8,
        "unshrunk": {"brier": 0.1, "calibration_slope": 0.7},
        "truncated_share": 0.02,
        "unseen_horizon": 3,
        "outcome_in_vocabulary": 0.993,
        "candidates": 2_841,
        "excluded": {"dead_at_index": 3, "horizon_past_data": 611, "not_chosen": 1_927},
        "observed_in_part": 0,
        "by_history": {
            "new_onset": {"n": 250, "positives": 9, "auroc": 0.71, "low": 0.6, "high": 0.8, "reason": ""},
            "repeat": {"n": 50, "positives": 0, "auroc": None, "low": None, "high": None, "reason": "no positive rows"},
        },
        "strata": {
            "sex": {
                "F": {
                    "n": 160,
                    "subjects": 140,
                    "positives": 30,
                    "prevalence": 0.1875,
                    "mean_risk": 0.21,
                    "auroc": 0.72,
                    "low": 0.6,
                    "high": 0.83,
                    "reason": "",
                },
                "M": {"n": 9, "subjects": 7, "positives": None, "reason": "fewer than 20 subjects"},
            }
        },
        "by_samples": [
            {
                "samples": 1 << power,
                "sets": max(1, 8 >> power),
                "auroc": 0.6 + 0.03 * power,
                "auroc_low": 0.57 + 0.035 * power,
                "auroc_high": 0.63 + 0.025 * power,
                "brier": 0.2 - 0.02 * power,
            }
            for power in range(5)
        ],
        "baselines": {
            "prevalence": {"auroc": 0.5, "low": 0.5, "high": 0.5, "brier": 0.12, "predicted": rate},
            "logistic_regression": rival,
        },
    }


def undefined_task() -> dict:
    nothing = {key: None for key in ("auroc", "low", "high", "auprc", "auprc_low", "auprc_high", "brier", "ece")}
    empty = {"false_positive_rate": [], "true_positive_rate": []}
    return (
        made_up_task(9, 0.2, 730.0, "First kidney failure within two years of a discharge", 20)
        | nothing
        | {
            "reason": "no positive rows",
            "positives": 0,
            "prevalence": 0.0,
            "brier": 0.01,
            "ece": 0.013,
            "roc": empty,
            "excluded": {},
            "calibration_slope": {"value": None, "low": None, "high": None, "reason": "no positive rows"},
            "by_history": {},
            "baselines": {
                "prevalence": {"auroc": None, "low": None, "high": None, "brier": 0.01, "predicted": 0.1},
                "logistic_regression": {**nothing, "reason": "no positive rows"},
            },
        }
    )


def made_up_results() -> dict:
    return {
        "run": {
            "workdir": "demo",
            "step": 1500,
            "created": "2026-01-02T03:04:05+00:00",
            "parameters": 3_412_864,
            "corpus_fingerprint": "0f" * 32,
            "dataset": {"name": "synthetic world", "version": "1", "subjects": 4000},
            "config": {
                "model": {"layers": 4, "width": 256, "heads": 4},
                "train": {"row_length": 512},
                "corpus": "runs/demo/corpus",
            },
            "options": {
                "samples": 16,
                "split": "held_out",
                "seed": 0,
                "resamples": 1000,
                "estimator": "monte_carlo",
                "target_se": 0.0,
            },
        },
        "losses": {"tuning_loss": 1.893, "unigram_loss": 4.711, "bigram_loss": 2.384, "targets": 50_000.0},
        "training": {"tokens_per_second": 14_210.0},
        "simulation": {
            "prompts": 612,
            "futures": 9792,
            "tokens": 801_223,
            "wall_s": 141.2,
            "tokens_per_second": 5674.0,
            "stops": {"death": 1200, "horizon": 8500, "length": 92},
        },
        "tasks": {
            "death_1y": made_up_task(1, 0.16, 365.0, "Death within a year of the end of an encounter"),
            "readmission_30d": made_up_task(
                2, 0.22, 30.0, "Inpatient admission within 30 days of an inpatient discharge"
            ),
            "diabetes_onset_2y": made_up_task(3, 0.08, 730.0, "First type 2 diabetes diagnosis within two years"),
        },
        "comparisons": {
            "logistic_regression": {
                "better": ["death_1y"],
                "worse": [],
                "not_told_apart": ["readmission_30d"],
                "untested": ["diabetes_onset_2y"],
                "few_events": [],
                "level": 0.05,
                "min_events": 100,
                "adjusted_p": {"death_1y": 0.01, "readmission_30d": 0.2},
            }
        },
        "amounts": {
            "stay": {
                "description": "Length of a stay",
                "n": 120,
                "observed_in_part": 0,
                "mean_recorded": 4.25,
                "median_recorded": 3.0,
                "mean_predicted": 4.5,
                "median_predicted": 3.5,
                "mean_standard_error": 0.75,
                "share_between_low_and_high": 0.825,
                "outcome_in_vocabulary": 0.913,
                **{f"mae{part}": value for part, value in (("", 1.5), ("_low", 1.25), ("_high", 1.75))},
                **{f"rmsle{part}": value for part, value in (("", 0.5), ("_low", 0.4), ("_high", 0.6))},
                **dict.fromkeys(("concordance", "concordance_low", "concordance_high")),
                "constant": {"mae": 2.25, "rmsle": 0.7},
            }
        },
        "cannot_run": {"troponin": "outcome LAB//LOINC//67151-1 matches no concept of the data (code map 'mimic')"},
        "warnings": [],
    }


def made_up_records() -> list[dict]:
    rng = np.random.default_rng(0)
    finals = {
        "DIAGNOSIS": 2.9,
        "LAB": 1.35,
        "MEDICATION": 1.9,
        "PROCEDURE": 2.2,
        "ENCOUNTER": 0.42,
        "INTERVAL": 1.41,
        "VALUE": 2.05,
        "DEPARTMENT": 0.9,
        "CHIEF_COMPLAINT": 2.87,
        "DEATH": 0.38,
        "SPECIAL": 0.4,
    }
    records = []
    for step in range(10, 1501, 10):
        loss = 1.89 + 4.2 * np.exp(-step / 130)
        records.append(
            {"step": step, "split": "train", "loss": loss + 0.03 * rng.normal(), "tokens_per_second": 14_000.0}
        )
        if step % 150 == 0:
            by_kind = {f"loss/{kind}": value + 3 * np.exp(-step / 200) for kind, value in finals.items()}
            records.append({"step": step, "split": "tuning", "loss": loss, **by_kind, "tokens/LAB": 9000})
    return records


def made_up_story(samples: int = 16) -> Story:
    rng = np.random.default_rng(4)
    lanes = ("ENCOUNTER", "DIAGNOSIS", "LAB", "MEDICATION", "PROCEDURE", "OTHER")
    tasks = {"death_1y": 365.0, "readmission_30d": 30.0, "diabetes_onset_2y": 730.0}

    def events(visits: np.ndarray) -> tuple[DatedEvent, ...]:
        return tuple(
            DatedEvent(float(visit), lanes[i % 6]) for visit in visits for i in range(1 + int(rng.integers(3, 12)))
        )

    def strip() -> Strip:
        died = rng.random() < 0.3
        days = float(rng.uniform(100, 700)) if died else 730.0
        outcomes = {"death_1y": days} if died and days < 365 else {}
        if rng.random() < 0.3:
            outcomes["readmission_30d"] = float(rng.uniform(2, 29))
        if rng.random() < 0.3 and days > 200:
            outcomes["diabetes_onset_2y"] = float(rng.uniform(20, days))
        visits = np.sort(rng.uniform(0, days, int(rng.integers(1, 14))))
        return Strip(
            events(visits), outcomes, "death" if died else ("length" if rng.random() < 0.1 else "horizon"), days
        )

    risks = {"death_1y": 0.219, "readmission_30d": 0.187, "diabetes_onset_2y": 0.104}
    past = events(np.sort(-rng.uniform(0, 3600, 40)))
    return Story(tasks, risks, 730.0, past, strip(), tuple(strip() for _ in range(samples)))


class _Resources(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.images: list[dict] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.references += [
            values[key] or "" for key in ("src", "href", "xlink:href", "data", "action") if key in values
        ]
        if tag in ("script", "link", "iframe", "img", "object", "embed"):
            self.references.append(f"<{tag}>")
        if tag == "svg":
            self.images.append(values)


@pytest.fixture(scope="module")
def page() -> str:
    return report.render(made_up_results(), made_up_records(), made_up_story())


def test_the_page_needs_nothing_from_outside_itself(page: str) -> None:
    parser = _Resources()
    parser.feed(page)
    assert parser.references and all(reference.startswith("#") for reference in parser.references)
    assert "http:" not in page and "https:" not in page and "@import" not in page and "<script" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_every_figure_has_a_text_alternative(page: str) -> None:
    parser = _Resources()
    parser.feed(page)
    assert len(parser.images) == 2 + 3 + 1 + 2
    assert all(image["role"] == "img" and image["aria-label"] and "viewbox" in image for image in parser.images)


def test_the_page_shows_the_figures_of_the_results(page: str) -> None:
    results = made_up_results()
    for value in ("1.893", "2.384", "4.711", "3,412,864", "14,210", "611 horizon passes the end of the data"):
        assert value in page
    for name, task in results["tasks"].items():
        assert name in page and report.with_interval(task) in page


@pytest.mark.parametrize(
    ("split", "unseen"), [("held_out", True), ("tuning,held_out", True), ("train,held_out", False)]
)
def test_subjects_are_called_unseen_only_where_no_training_subject_is_scored(split, unseen) -> None:
    results = made_up_results()
    results["run"]["options"]["split"] = split
    page = report.render(results, [], None)
    assert ("about subjects it has not seen (" in page) == unseen != ("about subjects (train" in page)


def test_a_subjects_figure_tells_the_share_of_futures_and_beside_it_the_risk_that_is_scored() -> None:
    story = made_up_story(samples=8)
    died = sum("death_1y" in future.outcomes for future in story.futures)
    page = report.render(made_up_results(), [], story)
    assert (
        0 < died < 8
        and f"death_1y: {died / 8:.2f} ± {1.96 * (died * (8 - died) / 8**3) ** 0.5:.2f}; scored 0.219" in page
    )
    assert "Beside it the risk that is scored: this share, drawn to the mean" in page


def test_a_risk_that_is_no_share_of_futures_is_not_called_one() -> None:
    results = made_up_results()
    results["run"]["options"]["estimator"] = "scope"
    page = report.render(results, [], made_up_story(samples=2))
    assert "(SCOPE), drawn to the mean" in page and "this share, drawn" not in page


def test_text_from_outside_is_escaped() -> None:
    results = made_up_results()
    results["run"]["dataset"]["name"] = "<script>alert(1)</script>"
    results["tasks"] = {"a_b": made_up_task(1, 0.2, 30.0, "less <b>than</b> & more")}
    page = report.render(results, [], None)
    assert "<script" not in page and "less &lt;b&gt;than&lt;/b&gt; &amp; more" in page


def test_undefined_scores_are_named_and_missing_parts_left_out() -> None:
    results = made_up_results()
    results["losses"], results["training"] = {}, {}
    results["tasks"] = {"kidney": undefined_task()}
    page = report.render(results, [], None)
    assert "not defined" in page and "no positive rows" in page
    assert "Tuning loss" not in page and "One subject" not in page


def test_the_same_input_gives_the_same_bytes() -> None:
    again = [report.render(made_up_results(), made_up_records(), made_up_story(3)) for _ in range(2)]
    assert again[0] == again[1]


def test_rows_whose_futures_all_end_before_the_horizon_are_told() -> None:
    results = made_up_results()
    name = next(iter(results["tasks"]))
    assert f"{name}: of 3 of" in report.text_table(results)
    assert "Of 3 rows no future reaches the horizon" in report.render(results, [], None)
    for task in results["tasks"].values():
        task["unseen_horizon"] = 0
    assert "reaches the horizon" not in report.text_table(results) + report.render(results, [], None)


def test_whose_future_is_known_is_told_and_of_whom_nobody_looked(page: str) -> None:
    results = made_up_results()
    assert page.count("the data&#39;s end are out") == 3
    assert "nobody looked" not in page + report.text_table(results) and "observed in part" not in page
    censorings = ("observation_end", "2022-12-31", "assume_complete")
    for task, censoring in zip(results["tasks"].values(), censorings, strict=True):
        task["censoring"] = censoring
    results["tasks"]["death_1y"]["observed_in_part"] = 17
    results["amounts"]["stay"]["observed_in_part"] = 1_234
    results["warnings"] = ["the data's last event is of 2099-01-01"]
    told = report.render(results, [], None)
    for words in (
        "the subject&#39;s observation are out",
        "passes the end of 2022-12-31 are out",
        "assumed complete",
        "Of 17 rows observation ended before the window did",
        "1,234 observed in part",
        "The data&#39;s last event is of 2099-01-01",
    ):
        assert told.count(words) == 1, words
    terminal = report.text_table(results)
    assert "death_1y: of 17 of 300 rows observation ended" in terminal and "stay: of 1,234 of 120 rows" in terminal


def test_the_text_table_holds_losses_and_intervals() -> None:
    results = made_up_results()
    results["tasks"]["kidney"] = undefined_task()
    table = report.text_table(results)
    assert "tuning loss   1.8930 nats/token" in table and "not defined" in table
    assert report.with_interval(results["tasks"]["death_1y"]) in table


def test_amounts_first_events_and_what_cannot_run_are_told() -> None:
    page = report.render(made_up_results(), [], None)
    for text in (
        "Counts and durations",
        "4.25",
        "82.5%",
        "91.3%",
        "1.25 to 1.75",
        "Cannot run",
        "matches no concept",
        "First ever",
    ):
        assert text in page
    terminal = report.text_table(made_up_results())
    assert (
        re.search(r"stay +4\.25 \(3\.00\) +4\.50 \(3\.50\) +120 +1\.500 +0\.500 +-", terminal)
        and "cannot run: troponin" in terminal
    )
    counted_only = made_up_results() | {"tasks": {}}
    assert "4.25" in report.render(counted_only, [], None)


def test_what_the_world_knows_is_shown_and_of_other_data_not_mentioned(page: str) -> None:
    results, records = made_up_results(), made_up_records()
    kinds = {key.removeprefix("loss/"): value for key, value in records[-1].items() if key.startswith("loss/")}
    records[-1] |= {f"tokens/{kind}": 1_000 for kind in kinds}
    results["losses"] |= {
        "floor": 1.5,
        "excess": 0.393,
        "floor_by_kind": {kind: value - 0.25 for kind, value in kinds.items()},
        "excess_by_kind": dict.fromkeys(kinds, 0.25),
    }
    for task in results["tasks"].values():
        task["best"] = made_up_scores(np.random.default_rng(5), np.repeat([0.0, 1.0], [240, 60]), 0.3) | {
            "shortfall": 0.0042,
            "draws": 100,
            "mean_risk": 0.2,
            "auroc_share": {"value": 0.873, "low": 0.71, "high": 1.02, "reason": ""},
            "mean_absolute_error": 0.06,
        }
    told = report.render(results, records, None)
    for words in (
        "Above the entropy floor",
        "Best possible",
        "87.3%",
        "71.0% to 102.0%",
        "about 0.004 higher",
        "true risks",
    ):
        assert words in told, words
    assert "0.3930 above it" in report.text_table(results)
    for task in results["tasks"].values():
        task["best"]["shortfall"] = -0.0042
    assert "about 0.004 lower" in report.render(results, records, None)
    for words in ("ntropy floor", "Best possible", "rue risks"):
        assert words not in page and words not in report.text_table(made_up_results())


def test_where_no_best_possible_is_known_one_note_says_why() -> None:
    results = made_up_results()
    unknown = {"auroc": None, "low": None, "high": None, "auroc_share": None, "reason": "written by other rules"}
    for task in results["tasks"].values():
        task["best"] = unknown
    page = report.render(results, [], None)
    assert page.count("The best possible AUROC is not known: written by other rules.") == 1
    assert page.count("written by other rules") == 1 and "synthetic world knows" not in page
    assert 'scope="col">Best possible' not in page and ">best possible<" not in page
    assert "best possible" not in report.text_table(results)
    known = made_up_scores(np.random.default_rng(5), np.repeat([0.0, 1.0], [240, 60]), 0.3)
    results["tasks"]["death_1y"]["best"] = known | {
        "shortfall": 0.004,
        "draws": 100,
        "mean_risk": 0.2,
        "auroc_share": {"value": 0.873, "low": 0.71, "high": 1.02, "reason": ""},
        "mean_absolute_error": 0.06,
    }
    page = report.render(results, [], None)
    # Beside one that is known, reasons stand in a column of bounded width.
    assert page.count('<small class="reason">written by other rules</small>') == 2
    assert 'scope="col">Best possible' in page and "best possible" in report.text_table(results)


def test_strata_recalibration_and_the_count_of_claims_are_shown(page: str) -> None:
    assert "<b>better on 1 of 2 tasks, worse on 0, not told apart on 1; 1 cannot be compared</b>" in page
    assert "not shown: fewer than 20 subjects" in page and "0.72 (0.60-0.83)" in page
    assert "slope 0.81 (0.55 to 1.12), intercept -0.20 <small>" in page
    assert "against logistic regression: better on 1 of 2" in report.text_table(made_up_results())


@pytest.mark.parametrize(
    ("days", "told"),
    [
        (0.5, "0.5 days"),
        (1, "1 day"),
        (3, "3 days"),
        (365, "1 year"),
        (365.25, "1 year"),
        (547.5, "1.5 years"),
        (730, "2 years"),
    ],
)
def test_a_horizon_is_told_in_days_or_years(days: float, told: str) -> None:
    assert report.days(days) == told
