"""Studies of seconds: one on a corpus made by hand, and one whose trials' results are drawn from a known surface."""

import json

import numpy as np

from experiments.scaling import study_config, surface, trials
from experiments.scaling.repeated import DataConstrained
from tests.cometjax import tiny_run

TRUE = surface.Surface(A=20.0, B=900.0, E=1.2, alpha=0.4, beta=0.5, objective=0.0)
BEST_RATE = 0.018
REPEATS = DataConstrained(TRUE, r_d=6.0, r_n=5.0, objective=0.0)


def config(folder, **changes):
    """A study of three budgets and five sizes on the corpus in `folder`, which is made where it is missing."""
    if not (folder / "corpus").exists():
        tiny_run.write_corpus(folder / "corpus")
    made = study_config.default_config()
    made.name = "tiny"
    made.data.corpus = str(folder / "corpus")
    made.data.validation_subjects = 20
    made.data.max_epochs = 1e9
    made.recipe.update(
        width_multiple=8, min_width=8, max_width=128, width_per_layer=64.0, min_layers=1, max_layers=1, head_dim=8,
        mlp_ratio=2.0, parameterization="mup", mup_base_width=16, row_length=64, batch_rows=8, batch_multiple=1,
        warmup_fraction=0.1,
    )  # fmt: skip
    made.pilot.tokens_per_parameter = 2.0
    made.grid.update(budgets=(6e8, 1.2e9, 2.4e9), sizes=5, spread=2.5)
    made.fit.bootstrap = 20
    made.run.workers = 2
    for key, value in changes.items():
        made.update_from_flattened_dict({key.replace("__", "."): value})
    return made


def write_result(workdir, trial, loss):
    """What a finished run leaves that a study reads."""
    folder = trials.folder(workdir, trial.name)
    folder.mkdir(parents=True)
    steps = np.unique(np.linspace(1, trial.steps, 30).astype(int))
    lines = [
        {"step": int(step), "split": "train", "loss": float(loss + 2.0 * np.exp(-4 * step / trial.steps))}
        for step in steps
    ]
    # Labs are learnt as foretold; diagnoses are, but for the check, which knows more of them.
    diagnoses = float(loss) * (0.8 if trial.stage == "check" else 1.0)
    kinds = {"loss/LAB": float(loss), "tokens/LAB": 300, "loss/DIAGNOSIS": diagnoses, "tokens/DIAGNOSIS": 100}
    lines.append({"step": trial.steps, "split": "tuning", "loss": float(loss), **kinds})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {
        "step": trial.steps, "tuning_loss": float(loss), "tokens": round(trial.tokens), "flops": trial.flops,
        "wall_seconds": 5.0 + trial.flops / 3e9, "tokens_per_second": 1e5, "skipped_steps": 0,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))


def pretend(workdir, planned, *, noise=0.001, loss_of=None):
    """Results of the planned trials by the known surface, with noise that a seed decides."""
    for index, trial in enumerate(planned):
        if trials.is_finished(workdir, trial):
            continue
        n, d, unique = (np.array(float(value)) for value in (trial.n, trial.tokens, trial.unique_tokens))
        true = REPEATS.loss(n, d, unique) if trial.stage == "repeats" else TRUE.loss(n, d)
        true = float(true) if loss_of is None else loss_of(trial)
        if trial.stage == "pilot":  # a learning rate other than the best costs something
            true *= 1 + 0.05 * np.log(trial.overrides["optimizer.learning_rate"] / BEST_RATE) ** 2
        write_result(workdir, trial, true * np.exp(noise * np.random.default_rng((7, index)).normal()))
