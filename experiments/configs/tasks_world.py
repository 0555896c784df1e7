"""Three questions about the synthetic world: two at every inpatient discharge, one at one encounter of each subject.

    python -m cometjax.evaluate --workdir runs/demo --meds runs/demo/meds --tasks experiments/configs/tasks_world.py \
        --out runs/demo/evaluation
    Expect: per task the AUROC of simulated futures beside that of logistic regression on counts, with intervals.

Override a field as in any configuration: `--tasks.tasks.death_1y.horizon_days=180`.
"""

from ml_collections import ConfigDict

INPATIENT_DISCHARGE = r"ENCOUNTER//ENCOUNTER_END//INPATIENT.*"
ANY_ENCOUNTER_END = r"ENCOUNTER//ENCOUNTER_END//.*"


def get_config() -> ConfigDict:
    """Tasks by name; the fields are those of cometjax.tasks.Task."""
    tasks = {
        # Both at discharges: those at risk, and one set of prompts answers both.
        "death_1y": {
            "description": "Death within {horizon_days} of an inpatient discharge",
            "index": INPATIENT_DISCHARGE,
            "outcome": r"DEATH",
            "horizon_days": 365.0,
            "index_choice": "all",
        },
        "readmission_30d": {
            "description": "Inpatient admission within {horizon_days} of an inpatient discharge",
            "index": INPATIENT_DISCHARGE,
            "outcome": r"ENCOUNTER//ENCOUNTER_START//INPATIENT.*",
            "horizon_days": 30.0,
            "index_choice": "all",
        },
        "diabetes_onset_2y": {
            "description": "First type 2 diabetes diagnosis within {horizon_days} of the end of an encounter",
            "index": ANY_ENCOUNTER_END,
            "outcome": r"DIAGNOSIS//ICD10CM//E11.*",
            "horizon_days": 730.0,
            "exclude_prior": True,
            "index_choice": "one",
        },
    }
    # The world's subjects are all followed to the data set's end, so rows too near to it can be told and left out.
    return ConfigDict({"tasks": {name: {"censoring": "dataset_end", **task} for name, task in tasks.items()}})
