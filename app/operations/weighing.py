"""Keeping the shares of agent types at the weights in force."""

import asyncio
import logging

from app.domain.errors import DatabaseUnavailable
from app.domain.fairness import FairQueue
from app.operations.config import CurrentConfig

log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0


async def follow_weights(config: CurrentConfig, fairness: FairQueue) -> None:
    """Until cancelled: the configuration's effective weights, by which leases are shared, are never much older."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        await take_weights(config, fairness)


async def take_weights(config: CurrentConfig, fairness: FairQueue) -> None:
    """Share by the weights in force, as far as the database tells them."""
    try:
        fairness.weights = (await config.read()).weights
    except DatabaseUnavailable:
        pass
    except Exception:
        log.exception("could not read the weights, trying again")
