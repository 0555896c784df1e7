"""The suite: 78 questions about subjects' futures, in families. `python -m experiments.tasks --list` shows them."""
