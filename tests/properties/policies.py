"""The seconds by which the machine lives: time passes in hundreds and limits lie at fifties, so that the real time that
an example takes never decides anything."""

from datetime import timedelta

from app.kernel.lanes import Priority
from app.queue.rules.aging import AgingPolicy, AgingStep
from app.queue.rules.tasks import LeasePolicy
from app.workers.rules.workers import HealthPolicy

LEASES = LeasePolicy(
    lease_seconds=950.0, acknowledge_within_seconds=350.0, deadline_grace_seconds=600.0, avoid_seconds=250.0
)
HEALTH = HealthPolicy(lost_after_seconds=950.0, start_within_seconds=450.0)
AGEING = AgingPolicy(
    steps=(
        AgingStep(priority=Priority.HIGH, wait=timedelta(seconds=1750)),
        AgingStep(priority=Priority.MEDIUM, wait=timedelta(seconds=1150)),
        AgingStep(priority=Priority.LOW, wait=timedelta(seconds=550)),
    )
)
TIMEOUTS = (350.0, 5050.0)
# The draw that spreads the delay of a retry is always a half.
DRAW = 0.5
DELAYS = ((0.0,), (900.0,), (0.0, 900.0))
PASSING = (100.0, 300.0, 1000.0, 5000.0)
RUN_AT = (None, None, None, -150.0, 250.0, 1250.0)
DEADLINES = (None, None, None, 50.0, 1250.0, 12050.0)
# What is compared of a moment: how many hundreds of seconds away it is.
STEP = 100.0
