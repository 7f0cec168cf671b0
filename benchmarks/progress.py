"""Progress of a measurement, told while it runs."""

import sys


def say(message: str) -> None:
    """Write a line to stderr, which leaves stdout to the results."""
    print(f"{message} ...", file=sys.stderr, flush=True)
