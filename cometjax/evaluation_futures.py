"""Whose futures an evaluation draws, how long they live, and what other processes must have in common with it."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cometjax import risks, simulation_job, task_rows
from cometjax.futures import Prompt
from cometjax.job_folder import Part
from cometjax.task_results import Rows
from cometjax.tasks import Task
from data_pipeline import meds, prompts

SECONDS_PER_DAY = 86_400.0


@dataclasses.dataclass(frozen=True)
class Group:
    """Tasks that take the end of a record alike, and the union of their prompts, each as long as the longest horizon
    asked of it.

    Attributes:
        sampler: draws them.
        prompts, days: who is asked, and how far ahead.
        tasks: what is asked.
        asks_PxK: which of the tasks ask each prompt.
    """

    sampler: risks.Sampler
    prompts: Sequence[Prompt]
    days: Sequence[float]
    tasks: Sequence[Task]
    asks_PxK: np.ndarray

    def draw(self, part: Part, *, progress: bool) -> int:
        """Draw a part's share, and keep it; returns the tokens drawn."""
        return self.sampler.draw(self.prompts, self.days, self.tasks, self.asks_PxK, part=part, progress=progress)

    def simulate(self, *, progress: bool) -> risks.Simulation:
        """All of it, of which nothing that is kept is drawn again."""
        return self.sampler.simulate(self.prompts, self.days, self.tasks, self.asks_PxK, progress=progress)


def groups(
    sampler: risks.Sampler, dataset: meds.MedsDataset, tasks: Sequence[Task], rows: Mapping[str, Rows]
) -> dict[str, Group]:
    """By `Task.timeline_end`, which decides the futures; tasks of several censorings may share theirs. The sampler's
    horizon, and whether timelines may end, are each group's own."""
    found = {}
    for timeline_end in sorted({task.timeline_end for task in tasks}):
        group = [task for task in tasks if task.timeline_end == timeline_end]
        config = dataclasses.replace(
            sampler.config,
            horizon_seconds=max(task.horizon_days for task in group) * SECONDS_PER_DAY,
            timeline_end=timeline_end,
        )
        wanted, asks_PxK = task_rows.union(group, rows)
        found[timeline_end] = Group(
            dataclasses.replace(sampler, config=config),
            prompts.build_prompts(dataset, wanted, sampler.vocabulary) if len(wanted) else [],
            wanted.get_column("days").to_list(),
            group,
            asks_PxK,
        )
    return found


def identity(found: Mapping[str, Group], tasks: Sequence[Task], options: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation's processes must have in common, and with what a job was begun (`cometjax.job_folder`).

    `options`: of the evaluation, but for how fast it is and where its files are.
    """
    prompts_hash = hashlib.sha256()
    for group in found.values():
        asked = simulation_job.hash_of_prompts(group.prompts, group.sampler.vocabulary, group.sampler.config)
        prompts_hash.update(json.dumps([asked, list(group.days), group.asks_PxK.tolist()]).encode())
    sampler = next(iter(found.values())).sampler
    told = json.dumps([dataclasses.asdict(task) for task in tasks], sort_keys=True, default=str)
    return {
        "weights": sampler.weights,
        "vocabulary": sampler.vocabulary.fingerprint,
        "tasks": hashlib.sha256(told.encode()).hexdigest(),
        "prompts": prompts_hash.hexdigest(),
        "settings": json.loads(json.dumps(dict(options))),
    }
