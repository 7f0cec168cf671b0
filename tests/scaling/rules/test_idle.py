"""What is extend_history of idle workers."""

from hypothesis import given
from hypothesis import strategies as st

from app.scaling.rules.idle import IdlePolicy, IdleSample, extend_history, surplus, without_workers

POLICY = IdlePolicy()
samples = st.lists(st.builds(IdleSample, seconds=st.floats(0.1, 20), idle=st.integers(0, 50)), max_size=80)


@given(history=samples, idle=st.integers(0, 60), busy=st.booleans())
def test_what_is_forgotten_could_not_have_mattered(history: list[IdleSample], idle: int, busy: bool) -> None:
    kept: tuple[IdleSample, ...] = ()
    for sample in history:
        kept = extend_history(kept, sample, POLICY)
    assert surplus(kept, idle, POLICY, busy=busy) == surplus(history, idle, POLICY, busy=busy)


@given(history=samples, idle=st.integers(0, 60), busy=st.booleans())
def test_nobody_idles_twice(history: list[IdleSample], idle: int, busy: bool) -> None:
    gone, _ = surplus(history, idle, POLICY, busy=busy)
    after = without_workers(history, gone)
    assert min((sample.idle for sample in after), default=0) >= 0
    assert gone <= idle
    assert all(new.idle == max(0, old.idle - gone) for new, old in zip(after, history, strict=True))


def test_the_history_ends_where_no_decision_looks() -> None:
    kept: tuple[IdleSample, ...] = ()
    for _ in range(1000):
        kept = extend_history(kept, IdleSample(seconds=5.0, idle=1), POLICY)
    assert len(kept) == 60
