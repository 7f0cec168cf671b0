"""The contract with the API of Kubernetes, against a server that answers by its conventions."""

import asyncio
from typing import Any

import pytest

from app.workers.provisioners.engine import EngineChanged, EngineUnavailable
from app.workers.provisioners.kubernetes.access import ClusterAccess
from app.workers.provisioners.kubernetes.deployment import KubernetesDeployment
from app.workers.rules.engines import MemberState
from tests.support.kubernetes_api import COST, DEPLOYMENT, NAMESPACE, Cluster, Fault
from tests.support.sql import until


async def grown(cluster: Cluster, engine: KubernetesDeployment, size: int) -> None:
    await engine.scale(await engine.state(fresh=True), size, ())
    await all_ready(cluster, size)


async def all_ready(cluster: Cluster, size: int) -> None:
    async def are_ready() -> bool:
        return len(cluster.ready()) == size

    await until(are_ready)


async def settled(cluster: Cluster) -> None:
    async def is_settled() -> bool:
        return len(cluster.pods) == cluster.replicas

    await until(is_settled)


async def test_a_size_is_set_and_its_pods_are_found(cluster: Cluster, engine: KubernetesDeployment) -> None:
    await grown(cluster, engine, 3)
    state = await engine.state(fresh=True)
    assert (state.requested, {member.state for member in state.members}) == (3, {MemberState.READY})
    assert [member.name for member in state.members] == sorted(cluster.ready())


async def test_more_pods_than_one_page(cluster: Cluster, engine: KubernetesDeployment) -> None:
    await grown(cluster, engine, 700)
    assert len((await engine.state(fresh=True)).members) == 700


async def test_victims_go_and_keep_no_others(cluster: Cluster, engine: KubernetesDeployment) -> None:
    await grown(cluster, engine, 10)
    state = await engine.state(fresh=True)
    victims = [member.name for member in state.members[3:7]]
    assert sorted(engine.choose(state, frozenset(victims), 4)) == victims
    await engine.scale(state, 6, victims)
    await settled(cluster)
    assert sorted(cluster.removed) == victims


async def test_a_pod_that_is_not_ready_any_more_stops_the_removal(
    cluster: Cluster, engine: KubernetesDeployment
) -> None:
    """It was lost after the choice: a real ReplicaSet would have removed it instead of the victim."""
    await grown(cluster, engine, 3)
    state = await engine.state(fresh=True)
    busy, _, idle = (member.name for member in state.members)
    cluster.set_ready(busy, is_ready=False)
    with pytest.raises(EngineChanged, match="not ready"):
        await engine.scale(state, 2, [idle])
    assert (cluster.removed, cluster.replicas) == ([], 3)
    # The cost of a pod that is not to go any more is taken from it before others go.
    cluster.set_ready(busy, is_ready=True)
    state = await engine.state(fresh=True)
    await engine.scale(state, 2, [busy])
    await settled(cluster)
    assert cluster.removed == [busy]
    assert [pod["metadata"]["annotations"] for pod in cluster.active()] == [{}, {}]


async def test_pods_that_come_between_the_look_and_the_size_take_nobody_with_them(
    cluster: Cluster, engine: KubernetesDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size is then by two too small, and the one that is not ready goes before the new ones, busy or not."""
    await grown(cluster, engine, 4)
    await cluster.stop_controllers()
    cluster.set_replicas(6)
    busy = cluster.ready()[0]
    cluster.set_ready(busy, is_ready=False)
    state = await engine.state(fresh=True)
    listed = cluster._list

    def come_after_the_look(parameters: dict[str, str]) -> dict[str, Any]:
        answer = listed(parameters)
        cluster.run_controllers()
        cluster.run_controllers()
        return answer

    monkeypatch.setattr(cluster, "_list", come_after_the_look)
    with pytest.raises(EngineChanged, match="not ready"):
        await engine.scale(state, 4, ())
    cluster.run_controllers()
    assert (len(cluster.ready()), cluster.removed, cluster.replicas) == (5, [], 6)


async def test_a_version_that_only_the_status_has_changed_is_no_conflict(
    cluster: Cluster, engine: KubernetesDeployment
) -> None:
    await grown(cluster, engine, 2)
    state = await engine.state(fresh=True)
    cluster.version += 7
    await engine.scale(state, 4, ())
    assert cluster.replicas == 4


async def test_a_size_that_somebody_else_has_set_is_left_alone(cluster: Cluster, engine: KubernetesDeployment) -> None:
    await grown(cluster, engine, 2)
    state = await engine.state(fresh=True)
    cluster.set_replicas(9)
    with pytest.raises(EngineChanged, match="9 replicas"):
        await engine.scale(state, 4, ())
    assert cluster.replicas == 9


async def test_an_answer_that_is_lost_is_asked_for_again(cluster: Cluster, engine: KubernetesDeployment) -> None:
    """The call was carried out, so its repetition is a conflict, and the size is the one that was meant."""
    state = await engine.state(fresh=True)
    cluster.faults = [Fault("PATCH", "/scale$", 0, carries_out=True)]
    await engine.scale(state, 3, ())
    assert cluster.replicas == 3


async def test_a_busy_server_is_given_its_time(cluster: Cluster, engine: KubernetesDeployment) -> None:
    cluster.faults = [Fault("GET", "/scale$", 429, headers={"Retry-After": "1"}), Fault("GET", "/pods$", 503, times=2)]
    began = asyncio.get_running_loop().time()
    await engine.state(fresh=True)
    assert asyncio.get_running_loop().time() - began >= 1.0
    assert [call for call in cluster.calls if call[1].endswith("/scale")] == 2 * [cluster.calls[0]]


async def test_a_server_that_wants_a_minute_is_left_alone(cluster: Cluster, engine: KubernetesDeployment) -> None:
    cluster.faults = [Fault("GET", "/scale$", 429, headers={"Retry-After": "60"})]
    with pytest.raises(EngineUnavailable, match=r"refuses \(429\)"):
        await engine.state(fresh=True)
    assert len(cluster.calls) == 1


async def test_what_the_role_does_not_allow_is_said(cluster: Cluster, engine: KubernetesDeployment) -> None:
    cluster.allowed -= {("list", "pods")}
    with pytest.raises(EngineUnavailable, match=r"refuses \(403\): .*cannot list"):
        await engine.state(fresh=True)


async def test_a_size_below_zero_is_refused_as_by_the_server(cluster: Cluster, engine: KubernetesDeployment) -> None:
    with pytest.raises(EngineUnavailable, match=r"\(422\)"):
        await engine.scale(await engine.state(fresh=True), -1, ())


async def test_a_deployment_that_is_not_there(cluster: Cluster) -> None:
    access = ClusterAccess(server=cluster.url, namespace=NAMESPACE, trust=True, token=lambda: "first")
    engine = KubernetesDeployment(access, "other", namespace=None, max_size=10)
    with pytest.raises(EngineUnavailable, match="no Deployment other in the namespace lab"):
        await engine.state(fresh=True)
    await engine.close()


async def test_a_token_that_was_replaced_is_read_again(cluster: Cluster) -> None:
    tokens, renewals = ["first"], list[int]()

    def renew() -> None:
        renewals.append(1)
        tokens[0] = "second"

    access = ClusterAccess(server=cluster.url, namespace=NAMESPACE, trust=True, token=lambda: tokens[0], renew=renew)
    engine = KubernetesDeployment(access, DEPLOYMENT, namespace=None, max_size=10)
    await engine.state(fresh=True)
    cluster.tokens = {"second"}
    await engine.state(fresh=True)
    assert renewals == [1]
    cluster.tokens = {"third"}
    with pytest.raises(EngineUnavailable, match=r"\(401\)"):
        await engine.state(fresh=True)
    await engine.close()


async def test_a_server_that_is_away_is_said(cluster: Cluster, engine: KubernetesDeployment) -> None:
    await cluster.kill()
    with pytest.raises(EngineUnavailable, match="does not answer"):
        await engine.state(fresh=True)
    await cluster.start()
    assert (await engine.state(fresh=True)).requested == 0


@pytest.mark.usefixtures("follower")
async def test_a_watch_spares_lists_and_survives_all_that_may_happen_to_it(
    cluster: Cluster, engine: KubernetesDeployment
) -> None:
    async def follows(size: int) -> None:
        async def is_known() -> bool:
            lists = cluster.calls.count(("GET", f"/api/v1/namespaces/{NAMESPACE}/pods"))
            state = await engine.state(fresh=False)
            is_from_watch = cluster.calls.count(("GET", f"/api/v1/namespaces/{NAMESPACE}/pods")) == lists
            ready = [member for member in state.members if member.state is MemberState.READY]
            return is_from_watch and len(ready) == len(state.members) == size

        await until(is_known)

    await grown(cluster, engine, 3)
    await follows(3)
    cluster.break_connections()
    await grown(cluster, engine, 5)
    await follows(5)
    # Changes that were missed and are forgotten by the server.
    cluster.compact()
    cluster.break_connections()
    await grown(cluster, engine, 6)
    await follows(6)
    await cluster.kill()
    with pytest.raises(EngineUnavailable):
        await engine.state(fresh=False)
    await cluster.start()
    await follows(6)
    state = await engine.state(fresh=True)
    victims = [state.members[0].name]
    await engine.scale(state, 5, victims)
    await follows(5)
    assert cluster.removed == victims


async def test_costs_that_somebody_raised_are_left_alone(cluster: Cluster, engine: KubernetesDeployment) -> None:
    await grown(cluster, engine, 3)
    kept = cluster.ready()[0]
    cluster.pods[kept]["metadata"]["annotations"][COST] = "50"
    state = await engine.state(fresh=True)
    await engine.scale(state, 2, [state.members[2].name])
    assert cluster.pods[kept]["metadata"]["annotations"][COST] == "50"
