"""How many workers machines have room for, and which takes the next."""

from hypothesis import given
from hypothesis import strategies as st

from app.workers.rules.hosts import Host, HostPolicy, host_limits, max_workers_by_cpu, max_workers_by_memory, spread

POLICY = HostPolicy()


def host(name: str = "a", **changes: float) -> Host:
    usual = {"size": 1, "usual_size": 1, "memory_gb": 10.0, "memory_used_gb": 0.0, "cpu_cores": 4.0}
    return Host(provisioner="local", host=name, **(usual | changes))  # type: ignore[arg-type]


_hosts = st.lists(
    st.builds(
        host,
        st.sampled_from("abcde"),
        memory_gb=st.floats(0.1, 500),
        memory_used_gb=st.floats(0, 500),
        cpu_cores=st.floats(0.1, 64),
        workers=st.integers(0, 50),
        workers_gb=st.floats(0, 50),
    ),
    unique_by=lambda found: found.host,
    max_size=5,
)


def test_memory_is_promised_not_only_used() -> None:
    """Of 10 GB a tenth is kept free, others use 2 of 3: 7 workers of 1 GB each, though the 4 there use 1 in all."""
    seen = host(memory_used_gb=3.0, workers=4, workers_gb=1.0)
    assert max_workers_by_memory(seen, POLICY) == 7


def test_caps_add_up_and_name_what_is_short() -> None:
    found = {cap.resource: cap.workers for cap in host_limits([host("a"), host("b", cpu_cores=0.1)], 3, POLICY)}
    assert found == {
        "memory of the hosts": 3 + 18,
        "CPU of the hosts": 3 + 128 + 3,
        "memory and CPU of each host": 3 + 9 + 3,
    }
    assert host_limits([], 5, POLICY) == []


def test_memory_of_one_host_and_cores_of_another_make_no_room() -> None:
    """128 seemed to fit on one with little memory and one with few cores, which got them although 4 fit."""
    hosts = [host("a", memory_gb=2.0), host("b", memory_gb=200.0, cpu_cores=0.1)]
    found = {limit.resource: limit.workers for limit in host_limits(hosts, 3, POLICY)}
    assert found == {"memory of the hosts": 3 + 181, "CPU of the hosts": 3 + 131, "memory and CPU of each host": 3 + 4}


@given(hosts=_hosts)
def test_what_the_limits_allow_fits_on_the_hosts(hosts: list[Host]) -> None:
    new = min((limit.workers for limit in host_limits(hosts, 0, POLICY)), default=0) - sum(h.workers for h in hosts)
    started = spread(hosts, max(0, min(new, 300)), POLICY)
    for seen in hosts:
        room = min(max_workers_by_memory(seen, POLICY), max_workers_by_cpu(seen, POLICY)) - seen.workers
        assert started[seen] <= room


@given(hosts=_hosts)
def test_nobody_who_is_there_is_too_many(hosts: list[Host]) -> None:
    for seen in hosts:
        assert max_workers_by_memory(seen, POLICY) >= seen.workers
        assert max_workers_by_cpu(seen, POLICY) >= seen.workers


@given(hosts=_hosts, new=st.integers(0, 40))
def test_all_new_workers_find_a_host_and_none_is_overfull_while_another_has_room(hosts: list[Host], new: int) -> None:
    taken = spread(hosts, new, POLICY)
    assert sum(taken.values()) == (new if hosts else 0)
    left = {
        seen: min(max_workers_by_memory(seen, POLICY), max_workers_by_cpu(seen, POLICY)) - seen.workers - taken[seen]
        for seen in hosts
    }
    over = [seen for seen in hosts if taken[seen] and left[seen] < 0]
    assert not over or all(room <= 0 for room in left.values())
