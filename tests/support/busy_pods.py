"""Which pods have a worker that holds a task, and which of these were removed."""

from tests.support.kubernetes_api import Cluster


class BusyPods:
    """The names of busy pods; `removed` are those that were busy when they were removed, or became so afterwards."""

    def __init__(self, cluster: Cluster) -> None:
        self.names: set[str] = set()
        self.removed: list[str] = []
        self._cluster = cluster
        cluster.on_remove = self._on_remove

    def begin(self, name: str) -> None:
        """Its worker has a task from now on."""
        self.names.add(name)
        if name in self._cluster.removed:
            self.removed.append(name)

    def end(self, name: str) -> None:
        """Its worker has none any more."""
        self.names.discard(name)

    def _on_remove(self, name: str) -> None:
        if name in self.names:
            self.removed.append(name)
