"""The machine on which the figures were measured."""

import os
import platform
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """State before the first measurement; `load` is the mean number of runnable processes over the last minute."""

    cores: int
    load: float
    python: str

    @classmethod
    def now(cls) -> Self:
        """Describe this machine."""
        return cls(cores=os.cpu_count() or 1, load=os.getloadavg()[0], python=platform.python_version())

    def __str__(self) -> str:
        return f"{self.cores} cores, load {self.load:.1f} before the run, Python {self.python}"

    @property
    def is_busy(self) -> bool:
        """Whether other processes use so much of it that only ratios mean anything."""
        return self.load > self.cores / 4
