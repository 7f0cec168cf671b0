"""Pods as members: their stage, why they do not come, and which a ReplicaSet removes first."""

from datetime import UTC, datetime, timedelta
from typing import Any

from app.workers.provisioners.kubernetes.pods import COST, Pod, pod_of, removed_first
from app.workers.rules.engines import MemberState

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)


def document(**changes: Any) -> dict[str, Any]:
    metadata = {"name": "p", "creationTimestamp": "2026-11-28T11:59:50Z"}
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    return {"metadata": metadata, "spec": {"nodeName": "n"}, "status": ready} | changes


def waiting(reason: str, **changes: Any) -> dict[str, Any]:
    container = {"image": "convener:9", "state": {"waiting": {"reason": reason}}} | changes
    return {"phase": "Pending", "containerStatuses": [container]}


def unplaced(seconds: float) -> dict[str, Any]:
    since = (NOW - timedelta(seconds=seconds)).isoformat()
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "lastTransitionTime": since}
    return {"phase": "Pending", "conditions": [{**condition, "message": "0/3 nodes are available"}]}


def test_a_pod_is_ready_on_its_way_or_leaving() -> None:
    pod = pod_of(document(), NOW)
    assert (pod.state, pod.created_at, pod.reason) == (MemberState.READY, NOW - timedelta(seconds=10), None)
    assert pod_of(document(status={"phase": "Pending"}), NOW).state is MemberState.STARTING
    assert pod_of(document(status={}, spec={}), NOW).state is MemberState.PENDING
    deleted = {"name": "p", "deletionTimestamp": "2026-11-28T11:59:50Z"}
    assert pod_of(document(metadata=deleted), NOW).state is MemberState.LEAVING
    assert pod_of(document(status={"phase": "Failed", "reason": "Evicted"}), NOW).state is MemberState.LEAVING


def test_reasons_say_what_the_cluster_says() -> None:
    image = pod_of(document(status=waiting("ImagePullBackOff")), NOW)
    assert (image.reason, image.is_failure) == ("the image convener:9 cannot be pulled (ImagePullBackOff)", True)
    ended = {"terminated": {"exitCode": 3, "reason": "Error"}}
    crash = pod_of(document(status=waiting("CrashLoopBackOff", lastState=ended)), NOW)
    assert crash.reason == "its container keeps ending (exit code 3): see `kubectl logs --previous`"
    killed = pod_of(
        document(status=waiting("CrashLoopBackOff", lastState={"terminated": {"reason": "OOMKilled"}})), NOW
    )
    assert "(OOMKilled)" in str(killed.reason)
    secret = waiting(
        "CreateContainerConfigError",
        state={"waiting": {"reason": "CreateContainerConfigError", "message": "secret not found"}},
    )
    assert "secret not found" in str(pod_of(document(status=secret), NOW).reason)


def test_no_room_is_a_failure_once_a_cluster_had_the_time_to_add_nodes() -> None:
    pods = [pod_of(document(spec={}, status=unplaced(seconds)), NOW) for seconds in (30, 300)]
    assert [(pod.reason, pod.is_failure) for pod in pods] == [
        ("no room: 0/3 nodes are available", False),
        ("no room: 0/3 nodes are available", True),
    ]


def test_messages_are_short_and_printable() -> None:
    status = unplaced(0)
    status["conditions"][0]["message"] = "\x1b[31m" + "x" * 5000
    reason = str(pod_of(document(spec={}, status=status), NOW).reason)
    assert reason.isprintable()
    assert len(reason) <= 200


def test_a_cost_that_is_no_number_counts_as_none() -> None:
    metadata = {"name": "p", "annotations": {COST: "cheap"}}
    assert pod_of(document(metadata=metadata), NOW).removal_cost == 0


def _pod(name: str, *, placed: bool = True, runs: int = 2, ready: bool = True, **changes: Any) -> Pod:
    return Pod(name=name, state=MemberState.READY, order=(placed, runs, ready), **changes)


def test_those_that_may_go_go_by_their_cost() -> None:
    assert removed_first([_pod("a"), _pod("b"), _pod("c")], frozenset("bc"), 2) == ["b", "c"]
    assert removed_first([_pod("a"), _pod("b"), _pod("c")], frozenset("bc"), 1) == ["b"]


def test_a_pod_that_stays_and_is_not_ready_keeps_all_others() -> None:
    """Readiness comes before the cost: it would be removed instead of the one that was chosen."""
    pods = [_pod("busy", ready=False), _pod("idle")]
    assert removed_first(pods, frozenset({"idle"}), 1) == []
    assert removed_first([*pods, _pod("new", placed=False, runs=0, ready=False)], frozenset({"new", "idle"}), 2) == [
        "new"
    ]


def test_nothing_is_chosen_during_an_update() -> None:
    pods = [_pod("a", template="old"), _pod("b", template="new")]
    assert removed_first(pods, frozenset("ab"), 1) == []
