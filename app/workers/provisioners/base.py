"""Interface of provisioners; each method is safe to repeat."""

from typing import Any, Protocol
from uuid import UUID

Handle = dict[str, Any]


class Provisioner(Protocol):
    """Starts and ends worker processes, and finds those that an earlier run started."""

    kind: str
    host: str

    async def start(self, worker_id: UUID, name: str, key: str) -> Handle:
        """Start a worker that registers with this key, or find the one that did. Raises OSError.

        The key must reach nobody else: neither an argument nor an environment is a place for it.
        """
        ...

    def stop(self, worker_id: UUID, handle: Handle, grace_seconds: float) -> None:
        """Begin to end a worker: by a request to drain now, by force after the grace."""
        ...

    def is_running(self, handle: Handle) -> bool:
        """Whether the process still runs."""
        ...

    def is_foreign(self, handle: Handle, silent_seconds: float) -> bool:
        """Whether the process may be one of another machine, which is not to be judged or ended here.

        Its worker has been silent for so long, if for longer than it may, else 0.
        """
        ...

    def tell_of_twin(self, handle: Handle, heard_seconds_ago: float | None) -> None:
        """Warn, once, where a foreign process is heard of: another machine keeps the pool of this host's name."""
        ...

    async def find(self) -> dict[UUID, Handle]:
        """The running workers that carry our mark, whoever started them."""
        ...

    def adopt(self, worker_id: UUID, handle: Handle) -> None:
        """Watch a worker that an earlier run started."""
        ...
