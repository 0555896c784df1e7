"""A study from start to end, each stage a function of what the folder already holds.

    WORKDIR/
      study.json            the configuration
      world-corpus/, corpus/, corpus-N/   data (experiments.scaling.corpora)
      base.json             the training configuration that trials change
      pilot.json            the pilot's trials
      plan.json             all trials, costed, before the grid runs
      trials/NAME/          training runs
      points.csv, fit.json, family.json, report.html
      check.json            the trial of the test that counts
      compiled/             XLA's programs, to be used again

Started again, a study goes on: plans that are written stay, finished trials are read and not run.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

from cometjax import workdir as workdirs
from data_pipeline.errors import UserError
from experiments.scaling import (
    analysis,
    calibration,
    cluster,
    consent,
    corpora,
    designs,
    entropy,
    family,
    gates,
    local,
    pilot,
    report,
    study_config,
    trials,
)
from experiments.scaling.analysis import Analysis
from experiments.scaling.fit import finite
from experiments.scaling.plan import PLAN, Plan, PlannedTrial, Planner, describe
from experiments.scaling.recipe import LearningRate, Recipe

STUDY, PILOT, CHECK, FIT, FAMILY, REPORT = (
    "study.json", "pilot.json", "check.json", "fit.json", "family.json", "report.html",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Launch:
    """How trials are run: "local", "slurm" or "jobset", and the cluster's configuration for the last two."""

    launcher: str = "local"
    cluster: ml_collections.ConfigDict | None = None


class Waiting(Exception):  # noqa: N818  (not an error: there is nothing to do until trials have run)
    """Trials are on a cluster, unfinished; the message says how to submit them."""


class Study:
    """One study in its folder. `say` is told of progress."""

    def __init__(
        self, config: ml_collections.ConfigDict, workdir: pathlib.Path, launch: Launch, say: Callable[[str], None]
    ) -> None:
        study_config.validate(config)
        self.config, self.workdir, self.launch, self.say = config, workdir, launch, say
        self.recipe = Recipe.from_config(config.recipe)
        _open(workdir, config)
        self.data = corpora.prepare(
            config.data,
            workdir,
            row_length=self.recipe.row_length,
            tied_embeddings=config.base.model.tied_embeddings,
        )
        workdirs.write_json(workdir / trials.BASE, self._base())
        self.say(
            f"data: {self.data.full.unique_tokens:,} training tokens of {self.data.full.subjects:,} subjects, "
            f"{self.data.tuning_tokens:,} to validate every trial on"
        )

    # Stages

    def run_pilot(self) -> pilot.PilotResult | None:
        """Run the pilot, if the study has one, and read it."""
        settings = self.config.pilot
        if not settings.budgets:
            return None
        plan = self._kept(PILOT, lambda: self._make(self.recipe, None, designs.pilot_trials))
        self._run(plan, PILOT, plan.trials, "pilot")
        runs = [
            pilot.PilotRun(
                one.trial.budget, one.trial.n, one.tokens, one.trial.overrides["optimizer.learning_rate"], one.loss
            )
            for one in trials.finished(self.workdir, plan.trials)
        ]
        found = pilot.analyse(
            runs,
            by_width=self.recipe.parameterization == "standard",
            by_tokens=len(settings.budgets) > 1,
            center_exponent=settings.center_exponent,
        )
        for warning in found.warnings:
            self.say(f"pilot: {warning}")
        return found

    def plan_grid(self, found: pilot.PilotResult | None) -> Plan:
        """The plan of everything after the pilot, made once."""
        recipe = self.recipe
        if found is not None and self.config.pilot.learning_rates:
            recipe = dataclasses.replace(recipe, learning_rate=found.learning_rate)
        notes = {"pilot": None if found is None else dataclasses.asdict(found)}
        return self._kept(
            PLAN,
            lambda: self._make(
                recipe, self._calibration(), lambda planner, config: designs.grid_trials(planner, config, found), notes
            ),
        )

    def run_grid(self, plan: Plan) -> None:
        """Run the plan's trials."""
        self._run(plan, PLAN, [trial for trial in plan.trials if trial.stage != "pilot"], "grid")

    def analyse(self) -> Analysis:
        """Fit what is finished."""
        plan = Plan.load(self.workdir / PLAN)
        outcomes = trials.finished(self.workdir, plan.trials)
        # Past the family's last member, which is drawn on them.
        beyond = max([analysis.BEYOND, *(1.25 * factor for factor in self.config.family.factors)])
        found = analysis.analyse(outcomes, self.config.fit, beyond)
        done, planned = len([one for one in outcomes if one.trial.stage == "grid"]), len(plan.of("grid"))
        whole = gates.Gate("grid finished", done == planned, f"{done} of {planned} trials of the grid are finished")
        optimal = all(math.isfinite(n) for n in found.result["bands"]["n"])
        reason = "the fitted surface has an optimum" if optimal else "a term of the surface is zero: it has no optimum"
        for gate in (whole, gates.Gate("optimum", optimal, reason)):
            found.result["gates"].append(dataclasses.asdict(gate))
            if not gate.passed:
                found.result["refused"].append(gate.reason)
        found.result["study"] = self.config.name
        return found

    def write_results(self, found: Analysis) -> None:
        """points.csv, fit.json, and family.json if no gate is closed."""
        plan = Plan.load(self.workdir / PLAN)
        self._write_points(trials.finished(self.workdir, plan.trials))
        check = self._check_outcome(found)
        if check is not None:
            found.result["check"] = check
        if found.refused:
            # A family of an earlier, smaller state of the study would outlive its refusal.
            (self.workdir / FAMILY).unlink(missing_ok=True)
        else:
            members = family.make(found, self._recipe(plan), self.data, plan, self.config)
            workdirs.write_json(self.workdir / FAMILY, finite(members))
        workdirs.write_json(self.workdir / FIT, finite(found.result))

    def _write_points(self, outcomes: Sequence[trials.Outcome]) -> None:
        """points.csv: every finished trial of the grid as a row, for any other program that fits scaling laws."""
        rows = ["trial,stage,budget,n,n_without_embeddings,tokens,unique_tokens,flops,loss"]
        rows += [
            f"{one.trial.name},{one.trial.stage},{one.trial.budget!r},{one.trial.n},{one.trial.n_without_embeddings},"
            f"{one.tokens},{one.trial.unique_tokens},{one.flops!r},{one.loss!r}"
            for one in outcomes
            if one.trial.stage == "grid"
        ]
        workdirs.write_text(self.workdir / report.POINTS, "\n".join([*rows, ""]))

    def run_check(self, found: Analysis, *, yes: bool) -> None:
        """The test that counts: foretell the family's model beyond the grid, then train it. Not past a closed gate.

        Raises UserError where it costs more than was agreed to (`yes`: whatever it costs), or would repeat its data.
        """
        if not self.config.check.factor or found.refused:
            return
        path = self.workdir / CHECK
        plan = Plan.load(path) if path.exists() else self._make_check(found)
        consent.ask(plan, self.workdir, self.config.run.limit_device_hours, where="config.check.factor", yes=yes)
        plan.save(path)  # once it is agreed to: until then the factor may change
        self._run(plan, CHECK, plan.trials, "check")

    def write_report(self, found: Analysis) -> pathlib.Path:
        """report.html, from whatever is finished."""
        plan = Plan.load(self.workdir / PLAN)
        every = [*self._plan_if_any(PILOT), *plan.trials, *self._plan_if_any(CHECK)]
        page = report.render(
            report.Contents(
                name=self.config.name,
                workdir=str(self.workdir),
                config=self.config.to_dict(),
                plan=plan,
                planned=tuple(dict.fromkeys(trial.name for trial in every)),
                outcomes=trials.finished(self.workdir, every),
                analysis=found,
                members=_read_if_any(self.workdir / FAMILY),
                data=self.data,
                floor=entropy.entropy_floor(self.config.data.entropy_floor, self.data.full.path, self.say),
            )
        )
        path = self.workdir / REPORT
        workdirs.write_text(path, page)
        return path

    # Plans

    def _make(
        self,
        recipe: Recipe,
        calibrated: calibration.Calibration | None,
        design: Callable[[Planner, ml_collections.ConfigDict], Sequence[PlannedTrial]],
        notes: dict[str, Any] | None = None,
    ) -> Plan:
        made = tuple(design(Planner(recipe, self.data, calibrated, self._devices()), self.config))
        times = None if calibrated is None else dataclasses.asdict(calibrated)
        return Plan(made, self._base(), dataclasses.asdict(recipe), times, notes or {})

    def _make_check(self, found: Analysis) -> Plan:
        recipe = self._recipe(Plan.load(self.workdir / PLAN))
        plan = self._make(
            recipe, self._calibration(), lambda planner, config: [designs.check_trial(planner, config, found)]
        )
        (trial,) = plan.trials
        # Foretold before it is trained, and kept: later fits must not improve it.
        foretold = dataclasses.asdict(found.predict(trial.n, trial.tokens, confidence=self.config.fit.confidence))
        return dataclasses.replace(plan, notes={"foretold": foretold})

    def _recipe(self, plan: Plan) -> Recipe:
        values = dict(plan.recipe)
        return Recipe(**(values | {"learning_rate": LearningRate(**values["learning_rate"])}))

    def _base(self) -> dict[str, Any]:
        return dict(json.loads(json.dumps(self.config.base.to_dict() | {"corpus": self.data.full.path})))

    def _devices(self) -> float:
        if self.launch.cluster is not None:
            return cluster.devices(self.launch.launcher, self.launch.cluster)
        return float(self.config.run.devices)

    def _calibration(self) -> calibration.Calibration | None:
        finished = trials.finished(self.workdir, [*self._plan_if_any(PILOT), *self._plan_if_any(PLAN)])
        return calibration.calibrate([one.timing for one in finished])

    def _plan_if_any(self, name: str) -> Sequence[PlannedTrial]:
        path = self.workdir / name
        return Plan.load(path).trials if path.exists() else ()

    def _kept(self, name: str, make: Callable[[], Plan]) -> Plan:
        path = self.workdir / name
        if not path.exists():
            make().save(path)
        return Plan.load(path)

    def _check_outcome(self, found: Analysis) -> dict[str, Any] | None:
        path = self.workdir / CHECK
        if not path.exists():
            return None
        plan = Plan.load(path)
        (trial,) = plan.trials
        foretold = plan.notes["foretold"]
        measured = trials.finished(self.workdir, plan.trials)
        result = {
            "trial": trial.name,
            "n": trial.n,
            "budget": trial.budget,
            "tokens": trial.tokens,
            "predicted": foretold,
        }
        if measured:
            loss, low = measured[0].loss, foretold["low"]
            result |= {
                "measured": loss,
                "relative_error": foretold["loss"] / loss - 1,
                "within_interval": None if low is None else low <= loss <= foretold["high"],
                "by_kind": analysis.by_kind(found, measured[0], self.config.fit.delta),
            }
        return result

    # Running

    def _run(self, plan: Plan, file: str, chosen: Sequence[PlannedTrial], stage: str) -> None:
        left = [trial for trial in chosen if not trials.is_finished(self.workdir, trial)]
        if not left:
            return
        if self.launch.launcher == "local":
            settings = self.config.run
            # The check is alone and has the machine. A grid's last trial keeps to one core like the others, however
            # often it is continued: over other devices sums round otherwise.
            alone = len(chosen) == 1
            self.say(f"{stage}: {len(left)} of {len(chosen)} trials to run")
            local.run_all(
                plan, self.workdir / file, chosen, self.workdir,
                workers=settings.workers, pin=settings.pin and not alone, say=self.say,
            )  # fmt: skip
            return
        assert self.launch.cluster is not None
        submit = cluster.write(
            left, stage, self.workdir, launcher=self.launch.launcher, cluster=self.launch.cluster,
            name=self.config.name,
        )  # fmt: skip
        raise Waiting(
            f"{stage}: {len(chosen) - len(left)} of {len(chosen)} trials finished. Submit what is left, where it does "
            f"not run yet:\n  {submit}\nand start this command again when it has run."
        )


def run(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, launch: Launch, *, yes: bool = False,
    dry_run: bool = False, report_only: bool = False, say: Callable[[str], None] = print,
) -> Analysis | None:  # fmt: skip
    """Take a study as far as it goes; returns what was found, None where it stopped at the plan.

    Raises:
        UserError: a wrong configuration, a folder of another study, a cost that was not agreed to, a trial that failed.
        Waiting: trials are on a cluster.
    """
    start = time.perf_counter()
    study = Study(config, workdir, launch, say)
    if report_only and not (workdir / PLAN).exists():
        raise UserError("no plan yet", where=str(workdir), fix="start the study without --report first")
    if report_only:
        _report(study, study.analyse(), start)
        return None
    try:
        plan = study.plan_grid(study.run_pilot())
        say(describe(plan.trials))
        say(consent.cost(plan))
        if missing := study_config.too_few(config):
            say(f"WARNING: a rehearsal ({missing}): a gate will refuse the fit, and no family will come of it")
        if dry_run:
            say(f"{workdir / PLAN}: dry run, nothing of it was started")
            return None
        consent.ask(plan, workdir, config.run.limit_device_hours, where=str(workdir / PLAN), yes=yes)
        study.run_grid(plan)
        found = study.analyse()
        study.write_results(found)
        study.run_check(found, yes=yes)
    except (Waiting, UserError):
        if (workdir / PLAN).exists():
            with contextlib.suppress(UserError):  # too few trials yet
                _report(study, study.analyse(), start)
        raise
    _report(study, found, start)
    return found


def _report(study: Study, found: Analysis, start: float) -> None:
    study.write_results(found)
    study.say(report.text_table(found))
    study.say(f"{study.write_report(found)}, {time.perf_counter() - start:.0f} s")


def _open(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    path = workdir / STUDY
    new = json.loads(json.dumps(config.to_dict()))
    if not path.exists():
        if workdir.exists() and any(workdir.iterdir()):
            raise UserError("holds something that is no study", where=str(workdir), fix="choose another --workdir")
        workdir.mkdir(parents=True, exist_ok=True)
    else:
        old_flat, new_flat = _flat(workdirs.read_json(path)), _flat(new)
        free = study_config.FREE_KEYS if (workdir / CHECK).exists() else (*study_config.FREE_KEYS, "check.")
        differing = [
            f"{key} is {new_flat.get(key)!r} but was {old_flat.get(key)!r}"
            for key in sorted(old_flat.keys() | new_flat.keys())
            if old_flat.get(key) != new_flat.get(key) and not key.startswith(free)
        ]
        if differing:
            raise UserError(
                f"was started with another configuration: {'; '.join(differing)}",
                where=str(workdir),
                fix="take the old values to go on, or choose another --workdir",
            )
    workdirs.write_json(path, new)
    # What a killed preparation left half made.
    for partial in workdir.glob("*.partial"):
        if partial.name.startswith("corpus"):
            shutil.rmtree(partial, ignore_errors=True)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _read_if_any(path: pathlib.Path) -> dict[str, Any] | None:
    return workdirs.read_json(path) if path.exists() else None
