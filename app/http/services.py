"""What routes work with; put together once by the entrance."""

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from app.admin.service.access import Keyring
from app.admin.service.config import CurrentConfig
from app.db.database import Database
from app.health.service.snapshot_cache import SnapshotCache
from app.llm.service.permits import PermitService
from app.queue.broker.broker import Broker
from app.queue.rules.tasks import LeasePolicy
from app.queue.service.admission import Admission
from app.queue.service.degradation import CurrentStep
from app.queue.service.leases import LeaseService
from app.queue.service.tasks import Intake
from app.scaling.service.bursts import Bursts
from app.workers.rules.workers import HealthPolicy
from app.workers.service.workers import Heartbeats

# So many look for events at once. Those who begin far back read page after page, and may not take all connections.
_FOLLOWING = 3


@dataclass(slots=True, kw_only=True)
class Services:
    """One per process."""

    database: Database
    broker: Broker
    degradation: CurrentStep
    desk: LeaseService
    heartbeats: Heartbeats
    keyring: Keyring
    admission: Admission
    bursts: Bursts
    config: CurrentConfig
    lookout: SnapshotCache
    permits: PermitService
    duplicate_window_seconds: float
    leases: LeasePolicy
    health: HealthPolicy
    max_payload_bytes: int
    expected_revision: str | None
    stopping: bool = False
    following: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_FOLLOWING))

    @property
    def intake(self) -> Intake:
        """On what terms tasks are taken in."""
        return Intake(
            admission=self.admission, duplicate_window_seconds=self.duplicate_window_seconds, bursts=self.bursts
        )


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
