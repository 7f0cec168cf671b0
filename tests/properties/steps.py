"""What a step of the machine is."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tests.properties.model import Model
from tests.properties.service import Service, answer


class Step(Protocol):
    """Something done to the queue; `judge` says by the model whether what was observed may be."""

    async def run(self, service: Service) -> object:
        """Do it to the service. Raises the refusal."""
        ...

    def judge(self, model: Model, observed: object) -> None:
        """Do it to the model. Raises AssertionError when the service should have answered otherwise.

        `observed` is the answer, or the class of the refusal.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Steps that have nothing to do with each other, at the same time."""

    steps: Sequence[Step]

    async def run(self, service: Service) -> object:
        return await asyncio.gather(*(answer(step.run(service)) for step in self.steps))

    def judge(self, model: Model, observed: object) -> None:
        assert isinstance(observed, list)
        for step, outcome in zip(self.steps, observed, strict=True):
            step.judge(model, outcome)
