"""Rates of models, and of single workers beside them, counted down during a decision on permits."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime, timedelta

from app.llm.rules.models import Model, meters
from app.llm.rules.permits import PermitRequest
from app.llm.rules.rate_limit import Dimension, Meter, charge, wait_time, worker_key, worker_meter


class RateLedger:
    """Meters of models, counted twice: held and waiting requests count as well, but have cost nothing yet.

    What is stored is charged for granted permits alone: `charged_meters`, and `charged_tats` of workers.
    """

    def __init__(self, models: Mapping[str, Model], now: datetime) -> None:
        self._models = models
        self._now = now
        self._meters = {name: meters(model, now) for name, model in models.items()}
        self.charged_meters = dict(self._meters)
        self.charged_tats: dict[str, dict[str, datetime]] = defaultdict(dict)

    def count(self, request: PermitRequest) -> None:
        """Count a request that is granted, held or waits."""
        self._meters[request.model] = self._charged(self._meters[request.model], request)

    def charge(self, request: PermitRequest) -> None:
        """Charge a request that is granted."""
        self.charged_meters[request.model] = self._charged(self.charged_meters[request.model], request)
        for dimension, own in self._worker_meters(request).items():
            # Alone a worker has the whole rate; it does not owe all of that once another comes.
            charged = charge(own, own.chargeable(_cost(request, dimension)), self._now).bounded(self._now)
            self.charged_tats[request.model][worker_key(dimension, request.holder)] = charged.tat

    def longest_wait(self, request: PermitRequest, *, is_alone: bool) -> tuple[Dimension, timedelta] | None:
        """The longest wait until the rates admit a request; None: they do now."""
        waits = {
            dimension: wait_time(meter, _cost(request, dimension), self._now)
            for dimension, meter in self._meters[request.model].items()
        }
        # Alone a worker may have the whole rate: nobody else wants any of it.
        if not is_alone:
            for dimension, own in self._worker_meters(request).items():
                waits[dimension] = max(waits[dimension], wait_time(own, _cost(request, dimension), self._now))
        longest = max(waits, key=lambda dimension: waits[dimension], default=None)
        return None if longest is None or waits[longest] <= timedelta() else (longest, waits[longest])

    def _charged(self, by_dimension: Mapping[Dimension, Meter], request: PermitRequest) -> dict[Dimension, Meter]:
        return {
            dimension: charge(meter, meter.chargeable(_cost(request, dimension)), self._now)
            for dimension, meter in by_dimension.items()
        }

    def _worker_meters(self, request: PermitRequest) -> dict[Dimension, Meter]:
        """The worker's own meters beside those of all; nobody else has any."""
        if request.worker_id is None:
            return {}
        tats = {**self._models[request.model].worker_tats, **self.charged_tats[request.model]}
        return {
            dimension: worker_meter(meter, tats.get(worker_key(dimension, request.holder)), self._now)
            for dimension, meter in self._meters[request.model].items()
        }


def _cost(request: PermitRequest, dimension: Dimension) -> int:
    return 1 if dimension is Dimension.REQUESTS else request.tokens
