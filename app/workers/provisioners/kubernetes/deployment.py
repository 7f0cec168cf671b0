"""A Deployment of workers, kept at a size by its scale subresource; pods that go are chosen by their deletion cost."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from app.workers.provisioners.engine import EngineChanged, EngineUnavailable
from app.workers.provisioners.kubernetes.access import ClusterAccess
from app.workers.provisioners.kubernetes.client import ApiClient, Json, Refused, VersionGone, path_of
from app.workers.provisioners.kubernetes.pods import COST, VICTIM_COST, Pod, pod_of, removed_first
from app.workers.rules.classes import WorkerClass
from app.workers.rules.engines import EngineMember, EngineState

log = logging.getLogger(__name__)
_PATCHES_AT_ONCE = 8
# Each status of a pod changes the version of its Deployment, which says nothing about its size.
_VERSION_TRIES = 8
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 10.0


class KubernetesDeployment:
    """Keeps the pods of one Deployment; needs get and patch of its scale, and get, list, watch and patch of pods.

    Pods are followed by a watch; whatever is removed is chosen from a list that was just read.
    """

    kind = "kubernetes"
    block_size = 1
    admits_unseen = False

    def __init__(
        self,
        access: ClusterAccess,
        deployment: str,
        *,
        namespace: str | None,
        max_size: int,
        serves: WorkerClass | None = None,
    ) -> None:
        self.name = deployment
        self.max_size = max_size
        self.serves = serves
        self._api = ApiClient(access)
        self._namespace = namespace or access.namespace
        self._scale = path_of("apis", "apps", "v1", "namespaces", self._namespace, "deployments", deployment, "scale")
        self._pods = path_of("api", "v1", "namespaces", self._namespace, "pods")
        # None while no watch is under way.
        self._followed: dict[str, Json] | None = None

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def state(self, *, fresh: bool) -> EngineState:
        """The size of the Deployment and its pods, as followed or as just read. Raises EngineUnavailable."""
        scale = await self._read_scale()
        followed = self._followed
        if fresh or followed is None:
            documents, _ = await self._api.list_all(self._pods, _selector(scale))
        else:
            documents = list(followed.values())
        moment = datetime.now(UTC)
        return EngineState(
            requested=_replicas(scale),
            members=[pod_of(document, moment) for document in documents],
            version=str(scale["metadata"].get("resourceVersion", "")),
        )

    def choose(self, state: EngineState, removable: frozenset[str], surplus: int) -> Sequence[str]:
        """Those of the pods that may go which its ReplicaSet removes before any other."""
        return removed_first(_pods(state.active), removable, surplus)

    async def scale(self, state: EngineState, size: int, victims: Sequence[str]) -> None:
        """Give the victims their cost, look once more whether they go first, and set the size.

        Raises EngineUnavailable, and EngineChanged where somebody else has set a size, or others would go.
        """
        is_smaller = bool(victims) or size < state.requested
        if is_smaller:
            await self._set_costs(state, victims)
        version = state.version
        for _ in range(_VERSION_TRIES):
            if is_smaller:
                # At each try: pods that come between a look and the size are more that have to go.
                version = await self._check_order(state, size, victims)
            try:
                body = {"metadata": {"resourceVersion": version}, "spec": {"replicas": size}}
                await self._api.patch(self._scale, body)
            except Refused as error:
                if error.status != 409:
                    raise
                current = await self._read_scale()
                # A call that was carried out though its answer was lost.
                if _replicas(current) == size:
                    return
                _check_size(state, _replicas(current))
                version = str(current["metadata"]["resourceVersion"])
            else:
                return
        raise EngineChanged("the Deployment changes faster than it can be set")

    async def run(self) -> None:
        """Follow the pods until cancelled: read all, watch the changes, and read again where some were missed."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                selector = _selector(await self._read_scale())
                documents, version = await self._api.list_all(self._pods, selector)
                self._followed = {document["metadata"]["name"]: document for document in documents}
                pause = _FIRST_PAUSE_SECONDS
                while True:
                    version = await self._follow(selector, version)
                    # A watch lasts for a minute, but nobody must be asked in a tight loop.
                    await asyncio.sleep(_FIRST_PAUSE_SECONDS)
            except VersionGone:
                self._followed = None
                await asyncio.sleep(_FIRST_PAUSE_SECONDS)
            except EngineUnavailable as error:
                self._followed = None
                log.warning("the pods of %s cannot be followed, trying again: %s", self.name, error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            except Exception:
                self._followed = None
                log.exception("following the pods of %s failed, trying again", self.name)
                await asyncio.sleep(_LONGEST_PAUSE_SECONDS)

    async def _follow(self, selector: str, version: str) -> str:
        """Apply the changes of one watch; return the version from which the next goes on."""
        followed = self._followed
        assert followed is not None
        async for kind, document in self._api.watch(self._pods, selector, version):
            version = str(document["metadata"]["resourceVersion"])
            if kind == "DELETED":
                followed.pop(document["metadata"]["name"], None)
            elif kind in ("ADDED", "MODIFIED"):
                followed[document["metadata"]["name"]] = document
        return version

    async def _read_scale(self) -> Json:
        try:
            return await self._api.get(self._scale)
        except Refused as error:
            if error.status == 404:
                where = f"in the namespace {self._namespace}"
                raise EngineUnavailable(f"there is no Deployment {self.name} {where}") from None
            raise

    async def _set_costs(self, state: EngineState, victims: Sequence[str]) -> None:
        """Give victims their cost, and take it from those that were to go once and are not any more."""
        chosen = set(victims)
        costs = {
            pod.name: str(VICTIM_COST) if pod.name in chosen else None
            for pod in state.active
            if (pod.removal_cost != VICTIM_COST if pod.name in chosen else pod.removal_cost < 0)
        }
        at_once = asyncio.Semaphore(_PATCHES_AT_ONCE)

        async def annotate(name: str, cost: str | None) -> None:
            async with at_once:
                try:
                    await self._api.patch(f"{self._pods}{path_of(name)}", {"metadata": {"annotations": {COST: cost}}})
                except Refused as error:
                    # One that has gone by itself needs no cost.
                    if error.status != 404:
                        raise

        results = await asyncio.gather(*(annotate(*cost) for cost in costs.items()), return_exceptions=True)
        for problem in results:
            if isinstance(problem, BaseException):
                raise problem

    async def _check_order(self, state: EngineState, size: int, victims: Sequence[str]) -> str:
        """The version of the Deployment by which victims, and pods that nobody has seen yet, go before any other.

        Raises EngineChanged where, by now, another would go, or somebody else has set a size.
        """
        current = await self.state(fresh=True)
        _check_size(state, current.requested)
        pods = _pods(current.active)
        # No worker of a pod is admitted before a turn has seen it.
        expendable = frozenset(victims) | ({pod.name for pod in pods} - {member.name for member in state.members})
        surplus = min(len(pods), len(pods) - size)
        if surplus > 0 and len(removed_first(pods, expendable, surplus, costs_are_set=True)) < surplus:
            raise EngineChanged("a pod that stays would be removed, as it is not ready or others have come")
        return current.version


def _check_size(state: EngineState, replicas: int) -> None:
    if replicas != state.requested:
        raise EngineChanged(f"somebody has set {replicas} replicas meanwhile") from None


def _pods(members: Sequence[EngineMember]) -> list[Pod]:
    return [member for member in members if isinstance(member, Pod)]


def _replicas(scale: Json) -> int:
    # Zero is left out.
    return int((scale.get("spec") or {}).get("replicas") or 0)


def _selector(scale: Json) -> str:
    selector = str((scale.get("status") or {}).get("selector") or "")
    if not selector:
        # Without one a list would have all pods of the namespace.
        raise EngineUnavailable("the Deployment does not say yet which pods are its own")
    return selector
