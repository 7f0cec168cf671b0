"""The worker's states and the table of legal moves between them."""

from collections.abc import Mapping
from enum import Enum, IntEnum


class State(Enum):
    """State of the worker; UNREGISTERED, LEASING, REPORTING and LEAVING each wait for the answer to one call."""

    UNREGISTERED = "unregistered"
    READY = "ready"  # registered, but not to ask for work before the next heartbeat is answered
    LEASING = "leasing"
    RUNNING = "running"
    KILLING = "killing"  # the handler was told to die; nothing else starts before it is dead
    RENEWING = "renewing"  # the work is done; a heartbeat must prove that the lease is still ours
    REPORTING = "reporting"
    LEAVING = "leaving"  # nothing is held; goodbye is being said
    STOPPED = "stopped"


class Intent(IntEnum):
    """Degree to which the worker is to stop; it only ever grows, whatever the state."""

    SERVE = 0
    DRAIN = 1  # finish the task at hand, take no other
    HALT = 2  # kill the task at hand and hand it back


MOVES: Mapping[State, frozenset[State]] = {
    State.UNREGISTERED: frozenset({State.READY, State.LEAVING, State.STOPPED}),
    State.READY: frozenset({State.LEASING, State.LEAVING, State.UNREGISTERED, State.STOPPED}),
    State.LEASING: frozenset(
        {State.LEASING, State.READY, State.RUNNING, State.REPORTING, State.LEAVING, State.UNREGISTERED, State.STOPPED}
    ),
    State.RUNNING: frozenset({State.RENEWING, State.REPORTING, State.KILLING}),
    State.KILLING: frozenset(
        {State.RENEWING, State.REPORTING, State.LEASING, State.LEAVING, State.UNREGISTERED, State.STOPPED}
    ),
    State.RENEWING: frozenset({State.REPORTING, State.LEASING, State.LEAVING, State.UNREGISTERED, State.STOPPED}),
    State.REPORTING: frozenset(
        {
            State.REPORTING,
            State.RENEWING,
            State.RUNNING,
            State.LEASING,
            State.LEAVING,
            State.UNREGISTERED,
            State.STOPPED,
        }
    ),
    State.LEAVING: frozenset({State.LEAVING, State.UNREGISTERED, State.STOPPED}),
    State.STOPPED: frozenset(),
}
