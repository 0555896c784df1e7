from data_pipeline import interrupts

# Before anything that takes long to import.
interrupts.answer_while_importing()
