"""Published orbits, split into bodies to fit, bodies to judge matches, and one body that no agent sees."""

import math
import os.path
from functools import cache
from typing import NamedTuple

Table = dict[str, list[float]]

VARIABLES = ("a", "e", "m")


class Sample(NamedTuple):
    """Bodies as columns: `table` holds a (AU), e and m (Earth masses); `log_periods` is ln T with T in years."""

    names: list[str]
    table: Table
    log_periods: list[float]


@cache
def sample(split: str) -> Sample:
    """The bodies of one split: train, held_out or test."""
    rows = [row for row in _rows() if row["split"] == split]
    return Sample(
        names=[row["name"] for row in rows],
        table={variable: [float(row[variable]) for row in rows] for variable in VARIABLES},
        log_periods=[math.log(float(row["T"])) for row in rows],
    )


def _rows() -> list[dict[str, str]]:
    # Every task is a new process: pathlib and csv would take longer to load than the file.
    with open(os.path.join(os.path.dirname(__file__), "planets.csv"), encoding="utf-8") as file:
        header, *lines = [line.strip().split(",") for line in file if not line.startswith("#")]
    return [dict(zip(header, line, strict=True)) for line in lines]
