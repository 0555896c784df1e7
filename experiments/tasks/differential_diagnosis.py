"""Which diagnosis will this emergency visit give? One question for each candidate of a chief complaint."""

from experiments.tasks import concepts
from experiments.tasks.concepts import EMERGENCY_END, EMERGENCY_START
from experiments.tasks.question import Concept, Question, diagnosis


def _candidates(complaint: str, *candidates: tuple[str, Concept]) -> tuple[Question, ...]:
    """A question for each candidate, at the start of a visit for this complaint."""
    presents = Concept(complaint.replace("_", " "), f"CHIEF_COMPLAINT//.*{complaint.upper()}.*")
    return tuple(
        Question(
            f"{complaint}_{name}",
            candidate,
            days=3,
            at=EMERGENCY_START,
            until=EMERGENCY_END,
            cohort=presents,
            cohort_days=0,
        )
        for name, candidate in candidates
    )


QUESTIONS = (
    *_candidates(
        "chest_pain",
        ("infarction", concepts.INFARCTION),
        ("unspecified", diagnosis("unspecified chest pain", "R07(2|89|9|$)", "7865([019]|$)")),
    ),
    *_candidates(
        "shortness_of_breath",
        ("pneumonia", concepts.PNEUMONIA),
        ("copd_exacerbation", concepts.COPD_EXACERBATION),
        ("heart_failure", concepts.ACUTE_HEART_FAILURE),
        ("asthma", diagnosis("an exacerbation of asthma", "J45([2-5]1|901)", r"493\d2")),
    ),
    *_candidates(
        "abdominal_pain",
        (
            "cholecystitis",
            diagnosis("acute cholecystitis", "K81([02]|$)|K80(0|1[23]|[46][2367])", "5750|57512|574[0368]"),
        ),
        ("pancreatitis", diagnosis("acute pancreatitis", "K85", "5770")),
        ("diverticulitis", diagnosis("diverticulitis", "K57([0248]|[1359][23])", "562[01][13]")),
        ("gastroenteritis", diagnosis("gastroenteritis", "A0[89]|K529", "008[68]|009|5589")),
    ),
    *_candidates(
        "fever",
        ("sepsis", diagnosis("sepsis", "A4[01]", "038")),
        ("influenza", diagnosis("influenza", "J(09|1[01])", "48[78]")),
    ),
    *_candidates(
        "fall",
        ("hip_fracture", diagnosis("a fracture of the hip", "S72[012]", "820")),
        ("concussion", diagnosis("a concussion", "S060", "850")),
    ),
)
