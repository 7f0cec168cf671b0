"""Resources: what a task asks for, and what a worker offers to the one task that it runs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

MAX_CLASSES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Amounts of processor cores, GiB of memory, GPUs, and resources that go by names of their own."""

    cores: float = 0.0
    memory_gb: float = 0.0
    gpus: int = 0
    named: frozenset[tuple[str, int]] = field(default_factory=frozenset)

    def covers(self, request: "Resources") -> bool:
        """Whether who offers this can run a task that requests that much."""
        return not self.missing(request)

    def missing(self, request: "Resources") -> dict[str, float]:
        """Name -> what is offered, of each resource of which the request wants more."""
        offered: dict[str, float] = {name: getattr(self, name) for name in _AMOUNTS} | dict(self.named)
        return {
            name: offered.get(name, 0) for name, amount in request.amounts().items() if offered.get(name, 0) < amount
        }

    def amounts(self) -> dict[str, float]:
        """Name -> amount of all that is not 0: GPUs first, then the named ones, memory and cores."""
        amounts: dict[str, float] = {"gpus": self.gpus, **dict(sorted(self.named))}
        amounts |= {"memory_gb": self.memory_gb, "cores": self.cores}
        return {name: amount for name, amount in amounts.items() if amount}

    def amount(self, name: str) -> float:
        """The amount of one of them."""
        return float(getattr(self, name) if name in _AMOUNTS else dict(self.named).get(name, 0))

    @property
    def rank(self) -> tuple[float, ...]:
        """Order of requests and offers by how much they are: what fewer workers have counts first."""
        return self.gpus, sum(amount for _, amount in self.named), self.memory_gb, self.cores

    def text(self) -> str:
        """Canonical JSON text: equal requests have equal texts."""
        amounts = {name: _plain(getattr(self, name)) for name in _AMOUNTS if getattr(self, name)}
        return json.dumps(amounts | ({"named": dict(sorted(self.named))} if self.named else {}), sort_keys=True)


_AMOUNTS = ("cores", "memory_gb", "gpus")
NOTHING = Resources()


@lru_cache(maxsize=1024)
def parse(text: str) -> Resources:
    """Resources from their JSON text."""
    return read(json.loads(text))


def read(content: Mapping[str, Any]) -> Resources:
    """Resources from a JSON object."""
    return Resources(
        cores=float(content.get("cores", 0)),
        memory_gb=float(content.get("memory_gb", 0)),
        gpus=int(content.get("gpus", 0)),
        named=frozenset((str(name), int(amount)) for name, amount in (content.get("named") or {}).items()),
    )


def _plain(amount: float) -> float:
    return int(amount) if amount == int(amount) else amount


def in_words(amounts: Mapping[str, float]) -> str:
    """Amounts as people write them: `2 GPUs, 16 GB of memory and 4 cores`."""
    parts = [_in_words(name, amount) for name, amount in amounts.items()]
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def _in_words(name: str, amount: float) -> str:
    match name:
        case "gpus":
            return f"{amount:g} GPU{'' if amount == 1 else 's'}"
        case "memory_gb":
            return f"{amount:g} GB of memory"
        case "cores":
            return f"{amount:g} core{'' if amount == 1 else 's'}"
        case _:
            return f"{amount:g} of {name}"
