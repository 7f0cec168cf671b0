"""Pods as members of a pool: their stage, why they do not come, and the order in which a ReplicaSet removes them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.kernel.text import printable
from app.workers.rules.engines import EngineMember, MemberState

COST = "controller.kubernetes.io/pod-deletion-cost"
# Below that of any pod that nobody has chosen, which counts as 0.
VICTIM_COST = -1000
_TEMPLATE = "pod-template-hash"
# A cluster that adds nodes by itself needs minutes, and shows the pods as unschedulable meanwhile.
_NO_ROOM_SECONDS = 120.0
_MAX_REASON_LENGTH = 200
_PULL_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
_START_REASONS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod(EngineMember):
    """A pod; `order` is its place, but for the cost, among those to remove, `template` tells its ReplicaSet."""

    order: tuple[bool, int, bool] = (False, 0, False)
    template: str = ""


def pod_of(document: Mapping[str, Any], now: datetime) -> Pod:
    """Read a pod as the API shows it."""
    metadata, status = document["metadata"], document.get("status") or {}
    phase = status.get("phase", "Pending")
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    is_ready = conditions.get("Ready", {}).get("status") == "True"
    is_placed = bool((document.get("spec") or {}).get("nodeName"))
    reason, is_failure = _wait(conditions, status, now)
    return Pod(
        name=str(metadata["name"]),
        state=_state(metadata, phase, is_placed=is_placed, is_ready=is_ready),
        created_at=_moment(metadata.get("creationTimestamp")),
        reason=None if reason is None else printable(reason)[:_MAX_REASON_LENGTH],
        is_failure=is_failure,
        removal_cost=_cost(metadata),
        # As the controller sorts: unplaced ones first, pending before unknown before running, unready before ready.
        order=(is_placed, {"Pending": 0, "Unknown": 1}.get(phase, 2), is_ready),
        template=str((metadata.get("labels") or {}).get(_TEMPLATE, "")),
    )


def removed_first(
    pods: Sequence[Pod], removable: frozenset[str], surplus: int, *, costs_are_set: bool = False
) -> list[str]:
    """The pods that a ReplicaSet removes first, once those that are removable have the cost of victims.

    With `costs_are_set` by the costs that they have: of those with the same, one that is not removable may go first.

    Readiness comes before the cost: a pod that is not ready goes before all that are, so as soon as one of those is
    not removable, nothing behind it can be removed without it. Source: kubernetes, pkg/controller/controller_utils.go,
    ActivePodsWithRanks.
    """
    if len({pod.template for pod in pods}) > 1:
        # While an update is rolled out several ReplicaSets shrink and grow, and the cost counts within each alone.
        return []
    names: list[str] = []

    def rank(pod: Pod) -> tuple[tuple[bool, int, bool], int, bool, str]:
        is_removable = pod.name in removable
        if costs_are_set:
            return pod.order, pod.removal_cost, is_removable, pod.name
        return pod.order, VICTIM_COST if is_removable else max(0, pod.removal_cost), not is_removable, pod.name

    for pod in sorted(pods, key=rank):
        if pod.name not in removable or len(names) == surplus:
            break
        names.append(pod.name)
    return names


def _state(metadata: Mapping[str, Any], phase: str, *, is_placed: bool, is_ready: bool) -> MemberState:
    # One that has failed or was evicted is kept by the API for a while, and replaced at once.
    if metadata.get("deletionTimestamp") or phase in ("Succeeded", "Failed"):
        return MemberState.LEAVING
    if is_ready:
        return MemberState.READY
    return MemberState.STARTING if is_placed else MemberState.PENDING


def _wait(
    conditions: Mapping[str, Mapping[str, Any]], status: Mapping[str, Any], now: datetime
) -> tuple[str | None, bool]:
    """Why a pod does not come, and whether it will not by itself."""
    for container in _containers(status):
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason")
        if reason in _PULL_REASONS:
            return f"the image {container.get('image', '')} cannot be pulled ({reason})", True
        if reason in _START_REASONS:
            return f"its container cannot be started: {waiting.get('message') or reason}", True
        if reason == "CrashLoopBackOff":
            last = (container.get("lastState") or {}).get("terminated") or {}
            how = f"exit code {last.get('exitCode')}" if last.get("reason") in (None, "Error") else last["reason"]
            return f"its container keeps ending ({how}): see `kubectl logs --previous`", True
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        since = _moment(scheduled.get("lastTransitionTime"))
        is_long = since is not None and (now - since).total_seconds() > _NO_ROOM_SECONDS
        return f"no room: {scheduled.get('message') or scheduled.get('reason')}", is_long
    return None, False


def _containers(status: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _cost(metadata: Mapping[str, Any]) -> int:
    try:
        return int((metadata.get("annotations") or {}).get(COST, 0))
    except ValueError:
        return 0


def _moment(value: str | None) -> datetime | None:
    return datetime.fromisoformat(value) if value else None
