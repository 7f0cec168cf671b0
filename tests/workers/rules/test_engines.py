"""What is asked of an engine that starts workers, and which of its members may go."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from app.kernel.ids import WorkerId
from app.workers.rules.engines import (
    EngineMember,
    EngineRequest,
    EngineState,
    MemberState,
    MemberWorker,
    admitted,
    plan_engine,
    plan_request,
)
from app.workers.rules.hosts import MemberWait

MOMENT = datetime(2026, 11, 28, tzinfo=UTC)


def member(name: str, state: MemberState = MemberState.READY, reason: str | None = None) -> EngineMember:
    return EngineMember(name=name, state=state, created_at=MOMENT, reason=reason, is_failure=reason == "no image")


def worker(name: str, *, leaving: bool = False, busy: bool = False) -> MemberWorker:
    number = sum(name.encode())
    return MemberWorker(worker_id=WorkerId(UUID(int=number)), name=name, leaving=leaving, busy=busy)


def state(*members: EngineMember, requested: int | None = None) -> EngineState:
    return EngineState(requested=len(members) if requested is None else requested, members=members)


def test_the_size_is_asked_for_and_members_on_their_way_are_awaited() -> None:
    plan = plan_engine(state(member("a"), member("b")), [worker("a")], 3)
    assert (plan.target, plan.surplus, dict(plan.awaited)) == (3, 0, {"b": MOMENT})


def test_a_leaving_worker_keeps_its_member_while_it_holds_a_task() -> None:
    workers = [worker("a"), worker("b", leaving=True, busy=True), worker("c", leaving=True)]
    plan = plan_engine(state(member("a"), member("b"), member("c")), workers, 1)
    assert (plan.target, plan.surplus, plan.removable) == (2, 1, frozenset({"c"}))


def test_a_worker_that_is_drained_in_this_turn_goes_in_a_later_one() -> None:
    """A lease may be given to it until the directive is committed."""
    plan = plan_engine(state(member("a"), member("b")), [worker("a", busy=True), worker("b")], 1)
    assert [plan.drain, plan.removable] == [[worker("b").worker_id], frozenset()]


def test_a_large_shrink_compares_no_worker_with_every_other() -> None:
    """The pool is locked meanwhile: 4,500 of 5,000 took three seconds."""
    compared = 0

    class CountingId(UUID):
        __hash__ = UUID.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return super().__eq__(other)

    names = [f"m-{number}" for number in range(300)]
    workers = [
        MemberWorker(worker_id=WorkerId(CountingId(int=number)), name=name, leaving=False, busy=False)
        for number, name in enumerate(names)
    ]
    assert len(plan_engine(state(*map(member, names)), workers, 10).drain) == 290
    assert compared < 3000


def test_members_without_a_worker_may_go_whatever_they_do() -> None:
    plan = plan_engine(state(member("a"), member("b", MemberState.PENDING)), [worker("a")], 1)
    assert (plan.surplus, plan.removable) == (1, frozenset({"b"}))


def test_a_staying_worker_whose_member_goes_gets_no_more_leases() -> None:
    plan = plan_engine(state(member("a"), member("b", MemberState.LEAVING)), [worker("a"), worker("b")], 2)
    assert (plan.drain_unplanned, plan.surplus) == ([worker("b").worker_id], 0)


def test_reasons_are_counted_and_failures_come_first() -> None:
    waiting = [member(name, MemberState.PENDING, "no room") for name in "abc"]
    plan = plan_engine(state(*waiting, member("d", MemberState.STARTING, "no image"), member("e")), [], 5)
    assert plan.waits == [
        MemberWait(reason="no image", members=1, is_failure=True),
        MemberWait(reason="no room", members=3),
    ]


def test_a_refusal_is_the_reason_of_the_members_that_were_not_started() -> None:
    refused = replace(state(member("a"), member("b")), refusal="no such account")
    assert plan_engine(refused, [], 6, 2).waits == [MemberWait(reason="no such account", members=4, is_failure=True)]
    # Nobody misses any, or not a whole block.
    assert plan_engine(refused, [], 2, 2).waits == []
    leaving = [worker("a", leaving=True, busy=True)]
    assert plan_engine(refused, leaving, 2, 2).waits == []


def test_of_blocks_whole_ones_are_admitted() -> None:
    assert [admitted(size, 4) for size in (0, 1, 4, 5)] == [0, 4, 4, 8]


def test_of_a_block_all_workers_are_drained_or_none_the_idlest_block_first() -> None:
    members = [replace(member(f"{block}{n}"), block=block) for block in "ajt" for n in range(2)]
    workers = [worker(each.name, busy=each.name in ("a0", "j0", "j1")) for each in members]
    plans = [plan_engine(state(*members), workers, size, 2) for size in (6, 4, 2)]
    names = {each.worker_id: each.name for each in workers}
    assert [[names[worker_id] for worker_id in plan.drain] for plan in plans] == [
        [],
        ["t0", "t1"],
        ["t0", "t1", "a0", "a1"],
    ]


def _drained(blocks: Sequence[EngineMember], names: str, size: int, block_size: int, expiring: int = 0) -> list[str]:
    """Names of the workers that are drained where those of these names are there, in capitals at work."""
    workers = [worker(name.lower(), busy=name.isupper()) for name in names.split()]
    plan = plan_engine(replace(state(*blocks), expiring=expiring), workers, size, block_size)
    ids = {each.worker_id: each.name for each in workers}
    return [ids[worker_id] for worker_id in plan.drain]


def test_blocks_that_miss_workers_which_a_full_pool_does_not_admit_make_room_for_whole_ones() -> None:
    pairs = [replace(member(f"{block}{n}"), block=block) for block in "ajt" for n in range(2)]
    assert _drained(pairs[:4], "a0 j0", 2, 2) == ["a0"]
    assert _drained(pairs[:4], "A0 j1", 2, 2) == ["j1"]
    assert _drained(pairs, "a0 a1 j0 t0", 4, 2) == ["j0"]
    fours = [replace(member(f"{block}{n}"), block=block) for block in "aj" for n in range(4)]
    assert _drained(fours, "a0 a1 a2 j0 j1 j2", 4, 4) == ["a0", "a1", "a2"]
    # One block is all that is wanted, or none can be spared.
    assert _drained(pairs[:2], "a0", 2, 2) == []
    assert _drained(pairs, "a0 j0 t0", 6, 2) == []
    # As long as others are missed, whoever has come is kept.
    assert _drained(pairs, "a0 j0 t0", 4, 2) == []
    # One that nobody has come from is given up instead.
    assert _drained(pairs[:4], "a0 a1", 2, 2) == []
    # One that is being replaced is above what the engine was asked for.
    assert _drained(pairs[:4], "a0 j0", 2, 2, expiring=2) == []
    # One that misses nobody gives way to none that misses many, as these may never come.
    large = [replace(member(f"a{n}"), block="a") for n in range(8)]
    assert _drained([*large, *pairs[2:4]], "a0 a1 J0 J1", 4, 2) == []


def test_nobody_comes_back_to_a_block_that_gives_way_and_queued_ones_give_way_first() -> None:
    pairs = [replace(member(f"{block}{n}"), block=block) for block in "aj" for n in range(2)]
    queued = [replace(member(f"t{n}", MemberState.PENDING), block="t") for n in range(2)]
    leaving = [worker("j0", leaving=True, busy=True), worker("j1", leaving=True)]
    staying = [worker("a0"), worker("a1")]
    assert plan_engine(state(*pairs), [*staying, *leaving], 2, 2).emptied == {"j0", "j1"}
    assert plan_engine(state(*pairs, *queued), [*staying, *leaving], 4, 2).emptied == {"t0", "t1"}
    assert plan_engine(state(*pairs), [*staying, *leaving], 4, 2).emptied == frozenset()
    # Where somebody stays, others may come.
    assert plan_engine(state(*pairs), [worker("a0"), worker("j0")], 4, 2).emptied == frozenset()


def test_members_that_expire_are_no_surplus() -> None:
    pairs = [replace(member(f"{block}{n}"), block=block) for block in "ajt" for n in range(2)]
    expiring = replace(state(*pairs, requested=4), expiring=2)
    workers = [worker(name) for name in ("a0", "a1", "j0", "j1")]
    plans = [plan_engine(expiring, workers, size, 2) for size in (4, 2)]
    assert [(plan.target, plan.surplus) for plan in plans] == [(4, 0), (2, 2)]


def test_a_block_that_leaves_is_over_when_its_last_worker_has_gone() -> None:
    members = [replace(member(name, MemberState.LEAVING), block=name[0]) for name in ("a0", "a1", "j0", "j1")]
    plan = plan_engine(state(*members, requested=0), [worker("j1", leaving=True, busy=True)], 0, 2)
    assert plan.over == ["a0", "a1"]
    assert plan_engine(state(member("p", MemberState.LEAVING), requested=0), [], 0).over == []


def request(state: EngineState, workers: Sequence[MemberWorker], size: int, *chosen: str) -> EngineRequest:
    return plan_request(state, plan_engine(state, workers, size), chosen)


def test_an_engine_is_asked_for_the_target_and_for_whoever_stays_until_all_of_the_surplus_can_go() -> None:
    members, leaving = state(*map(member, "abc")), [worker("a"), worker("b", leaving=True, busy=True), worker("c")]
    grown, shrunk = request(members, leaving, 4), request(members, leaving, 0, "c")
    assert (grown.size, grown.victims, grown.is_needed) == (5, [], True)
    assert (shrunk.size, shrunk.victims, shrunk.is_needed) == (2, ["c"], True)
    assert not request(members, leaving, 0).is_needed
    # Those that the engine has not made go without anybody being chosen, and it is never asked for more than it was.
    assert request(replace(members, requested=5), leaving, 0).size == 3
    assert request(replace(members, requested=2), leaving, 0).size == 2


def test_an_engine_that_rests_from_refusing_more_is_asked_for_less_only() -> None:
    resting = replace(state(member("a"), member("b")), is_resting=True)
    assert not request(resting, [], 4).is_needed
    assert request(replace(resting, requested=4), [], 2).is_needed


def test_what_is_over_goes_besides_the_surplus_whatever_the_size() -> None:
    over = [replace(member(f"o{n}", MemberState.LEAVING), block="o") for n in range(2)]
    members = state(member("a"), member("b"), *over, requested=2)
    kept, shrunk = request(members, [], 2), request(members, [], 0, "a")
    assert (kept.size, kept.victims, kept.is_needed) == (2, ["o0", "o1"], True)
    assert (shrunk.size, shrunk.victims) == (1, ["a", "o0", "o1"])


def test_whoever_goes_registers_no_more_and_whoever_is_on_its_way_may() -> None:
    blocks = [replace(member(f"{block}{n}"), block=block) for block in "aj" for n in range(2)]
    seen = state(*blocks, member("q"), member("v"), member("x", MemberState.LEAVING))
    turn = plan_request(seen, plan_engine(seen, [worker("a0"), worker("a1")], 3), ["v"])
    assert turn.dismissed == {"j0", "j1", "v", "x"}
    assert dict(turn.awaited) == {"q": MOMENT}


def test_an_older_state_is_enough_where_nobody_goes_comes_or_may_come_back() -> None:
    members = state(member("a"), member("x", MemberState.LEAVING), requested=1)
    assert request(members, [worker("a")], 1).is_safe_when_late(["x"])
    assert not request(members, [worker("a")], 1).is_safe_when_late(["a", "x"])
    assert not request(members, [worker("a")], 2).is_safe_when_late([])
