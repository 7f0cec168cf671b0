"""When the pool works at reduced capacity, and that this ends."""

from typing import Any

from app.workers.rules.recovery import Recovery, RecoveryPolicy, RecoverySnapshot, SlotRecord, assess

POLICY = RecoveryPolicy()


def slot(number: int, deaths: int = 0, *, steady: bool = True) -> SlotRecord:
    return SlotRecord(host="here", slot=number, young_deaths=deaths, is_steady=steady)


def found(*slots: SlotRecord, **more: Any) -> Recovery:
    return assess(RecoverySnapshot(slots=slots, **more), POLICY)


def test_two_deaths_are_bad_luck_and_three_are_a_loop() -> None:
    assert not found(slot(1), slot(2, 2, steady=False)).is_reduced
    reduced = found(slot(1), slot(2, 3, steady=False))
    assert reduced.is_reduced
    assert (reduced.failing, reduced.lost_share) == (["here/2"], 0.5)
    assert reduced.reason == "workers of 1 place in the pool keep dying young: 3 in the last 5 min"


def test_the_reason_of_the_last_death_is_told() -> None:
    record = SlotRecord(
        host="here", slot=1, young_deaths=3, is_steady=False, last_reason="not ready within 30 s: no model"
    )
    assert found(record).reason.endswith("3 in the last 5 min (not ready within 30 s: no model)")


def test_a_start_that_succeeds_ends_it() -> None:
    assert not found(slot(1, 7, steady=True)).is_reduced
    assert found(slot(1, 7, steady=True)) == Recovery()


def test_a_replacement_that_does_not_come_reduces_too() -> None:
    reduced = found(slot(1), slot(2), slot(3), slot(4), overdue=1)
    assert (reduced.is_reduced, reduced.lost_share) == (True, 0.25)
    assert reduced.reason == "1 lost worker has not been replaced within 30 s"


def test_a_name_that_several_machines_have_is_told_of() -> None:
    reduced = found(slot(1), shared_hosts=["here"])
    assert (reduced.is_reduced, reduced.lost_share, reduced.shared_hosts) == (True, 0.0, ["here"])
    assert reduced.reason == "several machines keep the pool of host here as if they were one"
    assert found(shared_hosts=["here"]).lost_share == 0.0


def test_an_empty_pool_is_not_reduced() -> None:
    assert not found().is_reduced
