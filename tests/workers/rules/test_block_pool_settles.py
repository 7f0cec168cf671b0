"""Pools of blocks after any history: once nothing happens any more, as many whole blocks are left as the size takes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from uuid import uuid4

import pytest

from app.kernel.ids import WorkerId
from app.workers.rules.engines import (
    EngineMember,
    EngineState,
    MemberState,
    MemberWorker,
    admitted,
    plan_engine,
    plan_request,
)

_STEPS, _QUIET_ROUNDS = 60, 80


@dataclass(slots=True)
class _Place:
    """A member's place in a block, and its worker; that of a broken one never registers."""

    name: str
    block: str
    worker: MemberWorker | None = None
    is_queued: bool = True
    is_broken: bool = False


@dataclass(slots=True)
class _Pool:
    """What the engine has, the size, and who may not register any more."""

    random: Random
    block_size: int
    size: int = 0
    places: list[_Place] = field(default_factory=list)
    dismissed: set[str] = field(default_factory=set)
    made: int = 0

    @property
    def workers(self) -> list[MemberWorker]:
        return [place.worker for place in self.places if place.worker is not None]

    def set(self, place: _Place, **changes: bool) -> None:
        worker = place.worker
        assert worker is not None
        facts = {"leaving": worker.leaving, "busy": worker.busy} | changes
        place.worker = MemberWorker(worker_id=worker.worker_id, name=worker.name, **facts)

    def register(self, place: _Place) -> None:
        """As app.workers.service.membership admits it."""
        staying = sum(not worker.leaving for worker in self.workers)
        is_full = staying >= admitted(self.size, self.block_size)
        is_able = place.worker is None and not place.is_broken and not place.is_queued
        if is_able and not is_full and place.name not in self.dismissed:
            worker_id = WorkerId(uuid4())
            place.worker = MemberWorker(worker_id=worker_id, name=place.name, leaving=False, busy=False)

    def turn(self) -> bool:
        """A turn of app.workers.service.engine_pool; whether it changed anything."""
        states = {True: MemberState.PENDING, False: MemberState.READY}
        members = [EngineMember(name=p.name, state=states[p.is_queued], block=p.block) for p in self.places]
        state = EngineState(requested=len(members), members=members)
        plan = plan_engine(state, self.workers, self.size, self.block_size)
        for place in self.places:
            if place.worker is not None and place.worker.worker_id in plan.drain:
                self.set(place, leaving=True)
        victims: set[str] = set()
        queued_first = sorted(self.places, key=lambda place: not place.is_queued)
        for block in dict.fromkeys(place.block for place in queued_first):
            names = {place.name for place in self.places if place.block == block}
            if len(victims) + len(names) <= plan.surplus and plan.removable >= names:
                victims |= names
        request = plan_request(state, plan, sorted(victims))
        self.dismissed = set(request.dismissed)
        self.places = [place for place in self.places if place.name not in victims]
        missing = request.size - len(members)
        for _ in range(missing // self.block_size):
            self.made += 1
            self.places += [_Place(f"b{self.made}-{n}", f"b{self.made}") for n in range(self.block_size)]
        return bool(plan.drain or victims or missing >= self.block_size)

    def step(self) -> None:
        """Something happens."""
        place = self.random.choice(self.places) if self.places else None
        match self.random.randrange(8):
            case 0:
                self.size = self.random.randrange(5 * self.block_size)
            case 1 | 2:
                self.turn()
            case 3 | 4 if place:
                self.register(place)
            case 5 if place and place.worker and not (place.worker.leaving and not place.worker.busy):
                self.set(place, busy=not place.worker.busy)
            case 6 if place:
                place.worker = None
            case 7 if place:
                self.start(place.block)

    def start(self, block: str) -> None:
        """The job of a block begins."""
        for place in self.places:
            if place.block == block:
                place.is_queued = False

    def quiet_round(self) -> bool:
        """A block begins, workers that leave end their tasks and go, those that are missing try to register; a turn."""
        if queued := [place.block for place in self.places if place.is_queued]:
            self.start(self.random.choice(queued))
        for place in self.random.sample(self.places, len(self.places)):
            if place.worker is not None and place.worker.leaving:
                if not place.worker.busy or self.random.random() < 0.2:
                    place.worker = None
            elif place.worker is not None and self.random.random() < 0.3:
                self.set(place, busy=not place.worker.busy)
            elif self.random.random() < 0.7:
                self.register(place)
        return self.turn()


def _blocks(pool: _Pool) -> Sequence[str]:
    return sorted({place.block for place in pool.places})


@pytest.mark.parametrize("block_size", [1, 2, 4])
def test_whole_blocks_are_left_and_no_more_than_the_size_takes(block_size: int) -> None:
    for seed in range(300):
        pool = _Pool(random=Random(seed), block_size=block_size)
        for _ in range(_STEPS):
            pool.step()
        changes = [pool.quiet_round() for _ in range(_QUIET_ROUNDS)]
        assert not any(changes[-10:]), (seed, "it never settles")
        wanted = admitted(pool.size, block_size)
        assert len(_blocks(pool)) == wanted // block_size, (seed, pool)
        assert sum(not worker.leaving for worker in pool.workers) == wanted, (seed, pool)


def test_blocks_in_which_one_never_comes_are_no_more_than_fill_the_pool() -> None:
    """What a broken node misses is no reason to keep another block for it."""
    for seed in range(300):
        pool = _Pool(random=Random(seed), block_size=4)
        for _ in range(_STEPS):
            pool.step()
            for block in _blocks(pool):
                next(place for place in pool.places if place.block == block).is_broken = True
        for place in pool.places:
            if place.is_broken:
                place.worker = None
        changes = [pool.quiet_round() for _ in range(_QUIET_ROUNDS)]
        assert not any(changes[-10:]), (seed, "it never settles")
        wanted, staying = admitted(pool.size, 4), sum(not worker.leaving for worker in pool.workers)
        # With one block more than that the pool is still not full.
        assert len(_blocks(pool)) == wanted // 4 or staying < wanted, (seed, pool)
