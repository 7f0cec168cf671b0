"""A small API server of Kubernetes on loopback, with a controller and nodes behind it, for contract tests.

It imitates, as a real server of version 1.33 was seen to do:

- the scale subresource of one Deployment: GET and merge PATCH; a stale resourceVersion is 409, a negative size 422, an
  unknown Deployment 404; each status of a pod changes the version, as the status of its Deployment does;
- pods: GET of lists with a label selector, pages (`limit`, `continue`), merge PATCH of annotations (404 when gone);
- watches: chunked JSON lines, bookmarks, an end after `timeoutSeconds`, an ERROR event with code 410 for a version that
  was compacted away;
- 401 for a token that is not valid any more, 403 for what the role does not allow, 429 with Retry-After and 5xx when
  told so, connections that break;
- the controllers: pods are created and removed at a rate, and removed in the order of ActivePodsWithRanks: unplaced,
  pending, not ready, then by `controller.kubernetes.io/pod-deletion-cost`, then the newest;
- nodes: room for a number of pods (the others are Unschedulable), a slow start, images that cannot be pulled, crash
  loops, readiness that is lost, evictions (a failed pod stays, and is replaced).

It does not imitate: authentication but by bearer tokens, TLS, admission and quotas, ReplicaSets of their own and
rolling updates, other kinds of objects and patches, field selectors, server-side apply, priority and fairness, grace
periods (a removed pod is gone a moment later), spreading over nodes as a rank among pods to remove.
"""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Json = dict[str, Any]
COST = "controller.kubernetes.io/pod-deletion-cost"
NAMESPACE, DEPLOYMENT, SELECTOR = "lab", "convener-workers", "app.kubernetes.io/name=convener-workers"
_SCALE = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{DEPLOYMENT}/scale"
_PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


@dataclass
class Fault:
    """An answer to the next requests that match, instead of the right one; a status of 0 breaks the connection."""

    method: str
    path: str
    status: int
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    # The request is carried out nevertheless: the answer alone is lost.
    carries_out: bool = False


class Cluster:
    """A Deployment, its pods, and an API server that can be stopped and started again on the same port."""

    def __init__(self) -> None:
        self.replicas = 0
        self.version = 100
        self.pods: dict[str, Json] = {}
        self.tokens = {"first"}
        self.allowed = {
            ("get", "scale"),
            ("patch", "scale"),
            *((verb, "pods") for verb in ("get", "list", "watch", "patch")),
        }
        self.faults: list[Fault] = []
        self.calls: list[tuple[str, str]] = []
        self.removed: list[str] = []
        # Called with the name of a pod that the controller removes, before anybody hears of it.
        self.on_remove: Callable[[str], None] = lambda name: None
        self.rate_per_second = 2000.0
        self.start_seconds = 0.0
        self.room: int | None = None
        self.image_is_missing = False
        self.crashes = False
        self._events: list[tuple[int, str, Json]] = []
        self._compacted = 0
        self._changed = asyncio.Event()
        self._connections: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._controller: asyncio.Task[None] | None = None
        self._made = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Serve, on the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        if self._controller is None:
            self._controller = asyncio.create_task(self._control())

    async def kill(self) -> None:
        """End the API server as kill -9 does; controller and nodes wait for it."""
        assert self._server is not None
        self._server.close()
        self._server = None
        self.break_connections()
        await asyncio.sleep(0)

    async def close(self) -> None:
        if self._server is not None:
            await self.kill()
        await self.stop_controllers()

    async def stop_controllers(self) -> None:
        """Nothing comes or goes from now on, but by `run_controllers`."""
        if self._controller is not None:
            self._controller.cancel()
            await asyncio.wait([self._controller])

    def run_controllers(self) -> None:
        """One turn of the controllers and the nodes."""
        self._reconcile()
        self._run_nodes()

    def break_connections(self) -> None:
        """Reset all connections, watches among them."""
        for writer in list(self._connections):
            writer.transport.abort()

    def compact(self) -> None:
        """Forget all changes so far: watches from an older version end with 410."""
        self._events.clear()
        self._compacted = self.version

    # The nodes

    def set_ready(self, name: str, *, is_ready: bool) -> None:
        """As the probe of a pod says."""
        pod = self.pods[name]
        pod["status"]["conditions"] = [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "True" if is_ready else "False"},
        ]
        self._change("MODIFIED", pod)

    def evict(self, name: str) -> None:
        """As a node under pressure does: the pod fails, stays for a while, and another is made."""
        pod = self.pods[name]
        pod["status"] = {"phase": "Failed", "reason": "Evicted", "conditions": []}
        self._change("MODIFIED", pod)

    def active(self) -> list[Json]:
        """Pods that count for the size."""
        return [
            pod
            for pod in self.pods.values()
            if "deletionTimestamp" not in pod["metadata"] and pod["status"]["phase"] not in ("Failed", "Succeeded")
        ]

    def ready(self) -> list[str]:
        """Names of the pods that are ready."""
        return [pod["metadata"]["name"] for pod in self.active() if _is_ready(pod)]

    # The controllers

    async def _control(self) -> None:
        while True:
            if self._server is not None:
                self.run_controllers()
            await asyncio.sleep(0.005)

    def _reconcile(self) -> None:
        budget = max(1, int(self.rate_per_second * 0.005))
        active = self.active()
        for _ in range(min(budget, self.replicas - len(active))):
            self._create()
        surplus = len(active) - self.replicas
        for pod in sorted(active, key=_removal_rank)[: max(0, min(budget, surplus))]:
            name = pod["metadata"]["name"]
            self.on_remove(name)
            self.removed.append(name)
            pod["metadata"]["deletionTimestamp"] = _now()
            self._change("MODIFIED", pod)

    def _create(self) -> None:
        self._made += 1
        name = f"{DEPLOYMENT}-5d9c7b-{self._made:05d}"
        self._change(
            "ADDED",
            {
                "metadata": {
                    "name": name,
                    "namespace": NAMESPACE,
                    "labels": {"app.kubernetes.io/name": DEPLOYMENT, "pod-template-hash": "5d9c7b"},
                    "annotations": {},
                    "creationTimestamp": _now(),
                    "number": self._made,
                },
                "spec": {},
                "status": {"phase": "Pending", "conditions": []},
                "seen": time.monotonic(),
            },
        )

    def _run_nodes(self) -> None:
        placed = sum("nodeName" in pod["spec"] for pod in self.pods.values())
        for pod in list(self.pods.values()):
            if "deletionTimestamp" in pod["metadata"]:
                # A moment later, so that it is seen on its way out.
                if time.monotonic() - pod["seen"] > 0.02:
                    self.pods.pop(pod["metadata"]["name"])
                    self._note("DELETED", pod)
            elif pod["status"]["phase"] == "Pending":
                placed += self._place_or_start(pod, placed)

    def _place_or_start(self, pod: Json, placed: int) -> int:
        status = pod["status"]
        if "nodeName" not in pod["spec"]:
            if self.room is None or placed < self.room:
                pod["spec"]["nodeName"] = "node-1"
                status["conditions"] = [{"type": "PodScheduled", "status": "True"}]
                self._change("MODIFIED", pod)
                return 1
            if not status["conditions"]:
                message = f"0/1 nodes are available: 1 Too many pods ({self.room})."
                condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
                status["conditions"] = [{**condition, "lastTransitionTime": _now()}]
                self._change("MODIFIED", pod)
        elif self.image_is_missing or self.crashes:
            reason = "ImagePullBackOff" if self.image_is_missing else "CrashLoopBackOff"
            container = {
                "image": "registry.example/convener:gone",
                "state": {"waiting": {"reason": reason}},
                "lastState": {} if self.image_is_missing else {"terminated": {"exitCode": 3, "reason": "Error"}},
            }
            if status.get("containerStatuses") != [container]:
                status["containerStatuses"] = [container]
                self._change("MODIFIED", pod)
        elif time.monotonic() - pod["seen"] >= self.start_seconds:
            status["phase"] = "Running"
            status.pop("containerStatuses", None)
            self.set_ready(pod["metadata"]["name"], is_ready=True)
        return 0

    def _change(self, kind: str, pod: Json) -> None:
        self.pods[pod["metadata"]["name"]] = pod
        if kind != "MODIFIED" or "deletionTimestamp" in pod["metadata"]:
            pod["seen"] = time.monotonic()
        self._note(kind, pod)

    def _note(self, kind: str, pod: Json) -> None:
        self.version += 1
        pod["metadata"]["resourceVersion"] = str(self.version)
        self._events.append((self.version, kind, json.loads(json.dumps(_shown(pod)))))
        self._changed.set()
        self._changed = asyncio.Event()

    # The API

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._answer(reader, writer):
                pass
        self._connections.discard(writer)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *lines = head.splitlines()
        method, target, _ = line.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines if each)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path, query = unquote(urlsplit(target).path), parse_qs(urlsplit(target).query)
        parameters = {name: values[0] for name, values in query.items()}
        self.calls.append(("WATCH" if "watch" in parameters else method, path))
        fault = next((f for f in self.faults if f.times and f.method == method and re.search(f.path, path)), None)
        if fault is not None:
            fault.times -= 1
            if fault.carries_out:
                self._handle(method, path, parameters, headers, body)
            if fault.status == 0:
                writer.transport.abort()
                return False
            await _send(writer, fault.status, _status(fault.status, "told so"), fault.headers)
            return True
        if "watch" in parameters:
            refusal = self._refusal("watch", "pods", headers)
            await (self._watch(writer, parameters) if refusal is None else _send(writer, *refusal))
            return True
        await _send(writer, *self._handle(method, path, parameters, headers, body))
        return True

    def _refusal(self, verb: str, resource: str, headers: dict[str, str]) -> tuple[int, Json] | None:
        if headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return 401, _status(401, "Unauthorized")
        if (verb, resource) not in self.allowed:
            return 403, _status(
                403, f'deployments.apps "{DEPLOYMENT}" is forbidden: cannot {verb} resource "{resource}"'
            )
        return None

    def _handle(
        self, method: str, path: str, parameters: dict[str, str], headers: dict[str, str], body: bytes
    ) -> tuple[int, Json]:
        resource = "scale" if path.endswith("/scale") else "pods"
        verb = "patch" if method == "PATCH" else "list" if path == _PODS else "get"
        if refusal := self._refusal(verb, resource, headers):
            return refusal
        if method == "PATCH" and headers.get("content-type") != "application/merge-patch+json":
            return 415, _status(415, "the body of the request was in an unknown format")
        if path == _SCALE:
            return self._scale(json.loads(body)) if method == "PATCH" else (200, self._shown_scale())
        if path == _PODS:
            return 200, self._list(parameters)
        pod = self.pods.get(path.rpartition("/")[2]) if path.startswith(f"{_PODS}/") else None
        if pod is None:
            return 404, _status(404, f"{path} not found")
        if method == "PATCH":
            self._annotate(pod, json.loads(body)["metadata"]["annotations"])
        return 200, _shown(pod)

    def _annotate(self, pod: Json, changes: Json) -> None:
        annotations = {**pod["metadata"]["annotations"], **changes}
        pod["metadata"]["annotations"] = {name: value for name, value in annotations.items() if value is not None}
        self._change("MODIFIED", pod)

    def _scale(self, change: Json) -> tuple[int, Json]:
        replicas = change["spec"]["replicas"]
        version = change.get("metadata", {}).get("resourceVersion")
        if replicas < 0:
            return 422, _status(422, "spec.replicas: Invalid value: must be greater than or equal to 0")
        if version is not None and version != str(self.version):
            return 409, _status(409, "the object has been modified; please apply your changes to the latest version")
        self.set_replicas(replicas)
        return 200, self._shown_scale()

    def set_replicas(self, replicas: int) -> None:
        """As somebody does by `kubectl scale`."""
        self.replicas = replicas
        self.version += 1

    def _shown_scale(self) -> Json:
        # Zero is left out, as by a real server.
        return {
            "kind": "Scale",
            "apiVersion": "autoscaling/v1",
            "metadata": {"name": DEPLOYMENT, "namespace": NAMESPACE, "resourceVersion": str(self.version)},
            "spec": {"replicas": self.replicas} if self.replicas else {},
            "status": {"replicas": len(self.active()), "selector": SELECTOR},
        }

    def _list(self, parameters: dict[str, str]) -> Json:
        if parameters.get("labelSelector") != SELECTOR:
            return {"kind": "PodList", "metadata": {"resourceVersion": str(self.version)}, "items": []}
        names = sorted(self.pods)
        begin, limit = int(parameters.get("continue", 0)), int(parameters.get("limit", len(names) or 1))
        metadata = {"resourceVersion": str(self.version)}
        if begin + limit < len(names):
            metadata["continue"] = str(begin + limit)
        items = [_shown(self.pods[name]) for name in names[begin : begin + limit]]
        return {"kind": "PodList", "metadata": metadata, "items": items}

    async def _watch(self, writer: asyncio.StreamWriter, parameters: dict[str, str]) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        version, ends_at = int(parameters["resourceVersion"]), time.monotonic() + float(parameters["timeoutSeconds"])
        while time.monotonic() < ends_at and not writer.is_closing():
            if version < self._compacted:
                _write_event(writer, "ERROR", _status(410, f"too old resource version: {version}"))
                break
            changed = self._changed
            for at, kind, pod in self._events:
                if at > version:
                    _write_event(writer, kind, pod)
                    version = at
            await writer.drain()
            try:
                async with asyncio.timeout(1.0):
                    await changed.wait()
            except TimeoutError:
                version = max(version, self.version)
                _write_event(writer, "BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": str(version)}})
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def _write_event(writer: asyncio.StreamWriter, kind: str, document: Json) -> None:
    line = json.dumps({"type": kind, "object": document}).encode() + b"\n"
    writer.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")


def _is_ready(pod: Json) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])


def _removal_rank(pod: Json) -> tuple[bool, bool, bool, int, int]:
    cost = int(pod["metadata"]["annotations"].get(COST, 0))
    is_placed, runs = "nodeName" in pod["spec"], pod["status"]["phase"] == "Running"
    return (is_placed, runs, _is_ready(pod), cost, -pod["metadata"]["number"])


def _shown(pod: Json) -> Json:
    return {name: pod[name] for name in ("metadata", "spec", "status")}


def _status(code: int, message: str) -> Json:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def _send(writer: asyncio.StreamWriter, code: int, document: Json, headers: dict[str, str] | None = None) -> None:
    text = json.dumps(document).encode()
    lines = [f"HTTP/1.1 {code} -", "Content-Type: application/json", f"Content-Length: {len(text)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + text)
    await writer.drain()
