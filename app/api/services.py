"""What routes work with; put together once by the entrance."""

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from app.domain.leases import LeasePolicy
from app.domain.workers import HealthPolicy
from app.operations.access import Keyring
from app.operations.admission import Admission
from app.operations.broker import Broker
from app.operations.bursts import Bursts
from app.operations.config import CurrentConfig
from app.operations.degradation import CurrentStep
from app.operations.leases import LeaseDesk
from app.operations.lookout import Lookout
from app.operations.permits import PermitDesk
from app.operations.tasks import Intake
from app.operations.workers import Heartbeats
from app.store.database import Database

# So many look for events at once. Those who begin far back read page after page, and may not take all connections.
_FOLLOWING = 3


@dataclass(slots=True, kw_only=True)
class Services:
    """One per process."""

    database: Database
    broker: Broker
    degradation: CurrentStep
    desk: LeaseDesk
    heartbeats: Heartbeats
    keyring: Keyring
    admission: Admission
    bursts: Bursts
    config: CurrentConfig
    lookout: Lookout
    permits: PermitDesk
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
