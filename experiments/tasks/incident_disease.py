"""Who falls ill, within two years: the first diagnosis ever, of subjects known for half a year without it."""

import functools

from experiments.tasks import concepts
from experiments.tasks.concepts import WENT_HOME
from experiments.tasks.question import Concept, Question, diagnosis

_WOMEN = Concept("female sex", "DEMOGRAPHIC//SEX//F")
_onset = functools.partial(Question, days=730, at=WENT_HOME, first_only=True, history_days=180)

QUESTIONS = (
    _onset("onset_diabetes", concepts.DIABETES),
    _onset("onset_hypertension", concepts.HYPERTENSION),
    _onset("onset_hyperlipidemia", concepts.HYPERLIPIDEMIA),
    _onset("onset_obesity", diagnosis("obesity", "E66(?!3)", "2780(?!2)")),
    _onset("onset_coronary_disease", concepts.CORONARY_DISEASE),
    _onset("onset_heart_failure", concepts.HEART_FAILURE),
    _onset("onset_fibrillation", concepts.FIBRILLATION),
    _onset("onset_stroke", concepts.STROKE),
    _onset("onset_kidney_disease", concepts.KIDNEY_DISEASE),
    _onset("onset_copd", concepts.COPD),
    _onset("onset_depression", concepts.DEPRESSION),
    _onset("onset_anxiety", diagnosis("an anxiety disorder", "F41", "3000")),
    _onset("onset_dementia", diagnosis("dementia", "F0[123]|G30", "290|294[12]|3310")),
    _onset("onset_osteoarthritis", diagnosis("osteoarthritis", "M1[5-9]", "715")),
    _onset("onset_osteoporosis", diagnosis("osteoporosis", "M8[01]", "7330"), cohort=_WOMEN),
    _onset("onset_sleep_apnea", diagnosis("sleep apnea", "G473", "3272|7805[137]")),
    _onset("onset_anemia", diagnosis("anemia", "D(5[0-35-9]|6[0-4])", "28[0-5]")),
    # Of the skin, melanoma only.
    _onset("onset_cancer", diagnosis("cancer", "C(?!44)", "(?!173)(1[4-9]|20[0-8])")),
)
