"""Counts in sentences: `1 row`, `1,204 rows`."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """The number, its thousands apart, and the noun, in the plural (the noun and an s) unless there is one."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
