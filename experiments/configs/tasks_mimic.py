"""Three questions at every hospital discharge of MIMIC-IV in MEDS (or of its open 100-patient demo).

    python -m cometjax.evaluate --workdir runs/mimic --meds DIR --tasks experiments/configs/tasks_mimic.py \
        --out runs/mimic/evaluation
    Expect: on the demo, intervals that span most of 0 to 1 (10 held-out subjects, about 20 discharges, one death),
    or no AUROC at all where one class is missing.

MIMIC-IV shifts every subject's dates by its own amount: no calendar end is common to all, hence "assume_complete". For
death that is nearly exact (MIMIC-IV records deaths up to a year after the last discharge); a readmission or diagnosis
at another hospital is missed.
"""

from ml_collections import ConfigDict

# Discharges of subjects who died in hospital name their outcome (and a few deaths are recorded hours later).
ALIVE_DISCHARGE = r"ENCOUNTER//ENCOUNTER_END//INPATIENT(?!.*DIED).*"


def get_config() -> ConfigDict:
    """Tasks by name; the fields are those of cometjax.tasks.Task."""
    tasks = {
        "death_1y": {
            "description": "Death within {horizon_days} of a hospital discharge",
            "outcome": r"DEATH",
            "horizon_days": 365.0,
        },
        "readmission_30d": {
            "description": "Hospital admission within {horizon_days} of a hospital discharge",
            "outcome": r"ENCOUNTER//ENCOUNTER_START//INPATIENT.*",
            "horizon_days": 30.0,
        },
        "anemia_onset_2y": {
            "description": "First anemia (ICD-10 D50, D62-D64; ICD-9 280, 285) within {horizon_days} of a discharge",
            "outcome": r"DIAGNOSIS//(ICD10CM//D(50|6[234])|ICD9CM//28[05]).*",
            "horizon_days": 730.0,
            "exclude_prior": True,
        },
    }
    shared = {"index": ALIVE_DISCHARGE, "index_choice": "all", "censoring": "assume_complete"}
    return ConfigDict({"tasks": {name: {**shared, **task} for name, task in tasks.items()}})
