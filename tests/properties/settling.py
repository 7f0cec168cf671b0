"""How every example ends: all that was accepted comes to its end, and nothing is left over."""

from uuid import uuid4

from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.memory.store import invariants
from app.queue.rules.tasks import RetryPolicy
from app.queue.store import events
from app.queue.store.events import BEGINNING, Event
from tests.properties.attempts import Complete
from tests.properties.game import Game
from tests.properties.leasing import Ask, AskTogether
from tests.properties.pool import Beat, Register
from tests.properties.service import Service
from tests.properties.steps import Together
from tests.properties.upkeep import Age, Cut, KeepInStep, PassTime, Promote, Resume, SweepLeases

_CREW = 6
_LONG = 20_000.0
_RESULT = '{"answer":0}'
# Partitions are made by a duty that does not run here.
_CHECKS = [check for check in invariants.CHECKS if check.name != "partitions"]


def settle(game: Game) -> None:
    """Let time pass and good workers come. Raises AssertionError when a task does not come to its end."""
    game.service.run(_check(game.service))
    game.do(Cut(is_cut=False))
    game.do(Resume(agents=list(AgentType)))
    game.do(PassTime(seconds=_LONG))
    game.do(SweepLeases(held_back_before=True))
    # A task whose leases nobody acknowledged rests from this sweep on, once more.
    game.do(PassTime(seconds=RetryPolicy().max_rest_seconds))
    game.do(Age())
    crew = _crew(game)
    # Whoever looks while another holds the row may go without, so there are rounds to spare.
    for _ in range(2 * len(game.model.live()) + 4):
        if not game.model.live():
            break
        _round(game, crew)
    left = game.model.live()
    assert not left, f"not done in any time: {left}"
    game.service.run(_check(game.service))


def _crew(game: Game) -> list[WorkerId]:
    game.do(Together(steps=[Register(name=f"crew-{number}", replica=number % 2) for number in range(_CREW)]))
    crew = list(game.model.workers)[-_CREW:]
    game.do(Together(steps=[Beat(worker_id=worker_id) for worker_id in crew]))
    return crew


def _round(game: Game, crew: list[WorkerId]) -> None:
    """Everybody takes a task and completes it."""
    if not any(task.is_ready for task in game.model.live()):
        game.do(Promote())
    game.do(Together(steps=[KeepInStep(replica=0), KeepInStep(replica=1)]))
    asks = [Ask(worker_id=worker, request_id=uuid4(), replica=n % 2) for n, worker in enumerate(crew)]
    game.do(AskTogether(asks=asks))
    held = [task.fence for task in map(game.model.held_by, crew) if task is not None]
    done = [Complete(fence=fence, result=_RESULT, replica=n % 2) for n, fence in enumerate(held) if fence is not None]
    game.do(Together(steps=done))


async def _check(service: Service) -> None:
    """What people who doubt may ask a service to look at, and what followers of events were told."""
    async with service.replicas[0].database.transaction() as connection:
        for verdict in await invariants.run_checks(connection, _CHECKS):
            assert not verdict.violations, f"{verdict.check.description}: {verdict.examples}"
    told = [(event.task_id, event.kind) for event in await _followed(service)]
    rows = await service.fetch("SELECT task_id, kind FROM every_event ORDER BY transaction, seq")
    # Events lag behind the oldest transaction of the whole server, never behind one another.
    assert told == [(row["task_id"], row["kind"]) for row in rows][: len(told)]


async def _followed(service: Service) -> list[Event]:
    found: list[Event] = []
    async with service.replicas[1].database.transaction() as connection:
        while page := (await events.read_batch(connection, found[-1].cursor if found else BEGINNING, None, 50)).items:
            found += page
    return found
