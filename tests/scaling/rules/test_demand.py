"""How long tasks have waited, from how many came between two looks."""

from hypothesis import given
from hypothesis import strategies as st

from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from app.scaling.rules.demand import Arrivals, count_arrivals, extend_history, group_by_age

LANE = Lane(agent_type=AgentType.GENERATION, priority=Priority.MEDIUM)
OTHER = Lane(agent_type=AgentType.RANKING, priority=Priority.LOW)
_looks = st.lists(
    st.builds(
        lambda seconds, tasks: Arrivals(seconds=seconds, tasks={LANE: tasks} if tasks else {}),
        st.floats(0.1, 60),
        st.integers(0, 50),
    ),
    max_size=12,
)


def test_what_came_is_what_waits_more_and_what_was_leased() -> None:
    came = count_arrivals({LANE: 5, OTHER: 9}, {LANE: 8}, {LANE: 4, OTHER: 9})
    assert came == {LANE: 7}


def test_those_that_came_last_wait() -> None:
    """10 s ago 5 had come, 5 s ago 3, just now 2; 7 wait, so 3 of the first were served."""
    history = [Arrivals(seconds=5.0, tasks={LANE: tasks}) for tasks in (5, 3, 2)]
    groups = group_by_age(history, LANE, 7, 20.0, 100.0)
    assert [(g.tasks, g.oldest_age_seconds, g.work_seconds) for g in groups] == [(2, 15, 40), (3, 10, 60), (2, 5, 40)]


def test_what_nobody_saw_coming_is_as_old_as_the_oldest() -> None:
    (group,) = group_by_age([], LANE, 4, 1.0, 90.0)
    assert (group.tasks, group.oldest_age_seconds) == (4, 90.0)


@given(history=_looks, tasks=st.integers(0, 200), oldest=st.floats(0, 200))
def test_every_task_is_in_one_group_the_oldest_first_and_none_is_older_than_the_oldest(
    history: list[Arrivals], tasks: int, oldest: float
) -> None:
    groups = group_by_age(history, LANE, tasks, 2.0, oldest)
    assert sum(group.tasks for group in groups) == tasks
    ages = [group.oldest_age_seconds for group in groups]
    assert all(age <= oldest for age in ages)
    seen = sum(look.tasks.get(LANE, 0) for look in history)
    assert ages == sorted(ages, reverse=True) or seen < tasks


@given(history=_looks, latest=st.floats(0.1, 60), lasts=st.floats(1, 100))
def test_the_history_reaches_back_far_enough_and_hardly_further(
    history: list[Arrivals], latest: float, lasts: float
) -> None:
    kept = extend_history(history, Arrivals(seconds=latest, tasks={}), lasts)
    total = sum(look.seconds for look in kept)
    assert kept[-1].seconds == latest
    assert total >= lasts or len(kept) == len(history) + 1
    assert sum(look.seconds for look in kept[1:]) < lasts


def test_the_latest_look_is_kept_when_next_to_no_time_at_all_is_wanted() -> None:
    """0.1 + 0.2 + 0.3 less 0.1 and 0.2 is a little more than 0.3, so what is left never seems to be little enough."""
    history = [Arrivals(seconds=seconds, tasks={}) for seconds in (0.1, 0.2)]
    latest = Arrivals(seconds=0.3, tasks={LANE: 1})
    assert extend_history(history, latest, 3e-19)[-1] == latest
