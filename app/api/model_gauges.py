"""Gauges of language models: calls under way, how many there may be, and for how long nobody may call."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Gauge
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.llm_models import ceiling
from app.store import llm_models, permit_gate
from app.store.llm_models import Portrait

# Callers name models, and what they make up must not fill the memory of whoever scrapes.
_MOST_MODELS = 50
_MEANINGS = {
    "in_use": "Calls of a language model that are under way",
    "limit": "Calls of a language model that may be under way: what its service was seen to bear",
    "cooldown_seconds": "For so long the service of a language model wants to be left alone",
}


class ModelGauges:
    """What is known of the models that were called within a day, or have limits of their own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._gauges = {
            name: Gauge(f"convener_llm_{name}", meaning, ["model"], registry=registry)
            for name, meaning in _MEANINGS.items()
        }

    def forget(self) -> None:
        """What is over, or unknown, is not told."""
        for gauge in self._gauges.values():
            gauge.clear()

    def show(self, found: Sequence[Portrait], most: int) -> None:
        """A line a model."""
        for one in found:
            pressure = one.model.pressure
            self._gauges["in_use"].labels(one.model.name).set(one.permits)
            self._gauges["limit"].labels(one.model.name).set(pressure.allowed(ceiling(one.model, most)))
            self._gauges["cooldown_seconds"].labels(one.model.name).set(pressure.cooldown_seconds(one.at))


async def look(connection: AsyncConnection) -> tuple[list[Portrait], int]:
    """What the gauges show, and how many calls of all models there may be."""
    found = await llm_models.page(connection, after="", limit=_MOST_MODELS)
    return found, (await permit_gate.measure(connection)).most
