"""Two of everything: two `convener api` behind haproxy and two `convener loops`, one of each at each of two pgbouncers.

`CONVENER_TEST_TOPOLOGY=replicated` lets every test of a process of the API run against it.
"""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import free_port
from tests.support.processes import process
from tests.support.proxies import Pooler, haproxy, pgbouncer

IS_REPLICATED = os.environ.get("CONVENER_TEST_TOPOLOGY") == "replicated"
_NUMBERS = (1, 2)
API_SETTINGS = {"CONVENER_MAX_QUEUE_SIZE": "100000"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """What runs, and the port of haproxy."""

    port: int
    api_ports: list[int]
    poolers: list[Pooler]
    apis: list["subprocess.Popen[bytes]"]
    loops: list["subprocess.Popen[bytes]"]
    environment: Mapping[str, str]

    @property
    def url(self) -> str:
        """The address of haproxy."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def own_urls(self) -> list[str]:
        """The addresses of the APIs themselves."""
        return [f"http://127.0.0.1:{port}" for port in self.api_ports]

    def lead_to(self, port: int) -> None:
        """Let both pgbouncers lead to the server at this port, as a failover does."""
        for pooler in self.poolers:
            pooler.lead_to(port)
            pooler.reload()

    @property
    def children(self) -> list["subprocess.Popen[bytes]"]:
        """All processes of the service."""
        return [*self.apis, *self.loops]


@contextmanager
def replicas(
    database_url: str, directory: Path, module: str = "app.main", *, direct_url: str | None = None, **settings: str
) -> Iterator[Replicas]:
    """Start them over a database, whose address leads to the server itself; `direct_url`, where LISTEN goes to another.

    All end with the block, each by its own pid.
    """
    name = database_url.rpartition("/")[2]
    with ExitStack() as stack:
        poolers = [
            stack.enter_context(pgbouncer(database_url, directory / f"pgbouncer-{number}.log")) for number in _NUMBERS
        ]
        environment = {
            "CONVENER_DATABASE_DIRECT_URL": direct_url or database_url,
            "CONVENER_TRUSTED_PROXIES": "127.0.0.1",
            "CONVENER_STATE_DIRECTORY": str(directory),
            **API_SETTINGS,
            **settings,
        }
        by_pooler = [environment | {"CONVENER_DATABASE_URL": pooler.url(name)} for pooler in poolers]
        ports = [free_port() for _ in _NUMBERS]
        apis = [
            stack.enter_context(process(module, through | {"CONVENER_PORT": str(port)}, directory / log))
            for through, port, log in zip(by_pooler, ports, ("api.log", "api-2.log"), strict=True)
        ]
        own = {"CONVENER_PORT": str(ports[0]), "CONVENER_POOL_SIZE": "0"}
        loops = [
            stack.enter_context(
                process(
                    "app.background",
                    through | own | {"CONVENER_HOST_NAME": f"host-{number}"},
                    directory / "replicated-loops.log",
                )
            )
            for number, through in zip(_NUMBERS, by_pooler, strict=True)
        ]
        port = stack.enter_context(haproxy(ports, directory / "haproxy.log"))
        yield Replicas(port=port, api_ports=ports, poolers=poolers, apis=apis, loops=loops, environment=environment)
