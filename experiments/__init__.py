import data_pipeline  # noqa: F401  (answers Ctrl-C while a command of this package imports the rest)
