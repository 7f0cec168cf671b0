"""Two of everything: two `convener api` behind haproxy and two `convener loops`, all through pgbouncer.

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
API_SETTINGS = {"CONVENER_MAX_QUEUE_SIZE": "100000"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """What runs, and the port of haproxy."""

    port: int
    api_ports: list[int]
    pooler: Pooler
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
        pooler = stack.enter_context(pgbouncer(database_url, directory / "pgbouncer.log"))
        environment = {
            "CONVENER_DATABASE_URL": pooler.url(name),
            "CONVENER_DATABASE_DIRECT_URL": direct_url or database_url,
            "CONVENER_TRUSTED_PROXIES": "127.0.0.1",
            "CONVENER_STATE_DIRECTORY": str(directory),
            **API_SETTINGS,
            **settings,
        }
        ports = [free_port(), free_port()]
        apis = [
            stack.enter_context(process(module, environment | {"CONVENER_PORT": str(port)}, directory / log))
            for port, log in zip(ports, ("api.log", "api-2.log"), strict=True)
        ]
        own = {"CONVENER_PORT": str(ports[0]), "CONVENER_POOL_SIZE": "0"}
        loops = [
            stack.enter_context(
                process(
                    "app.background",
                    environment | own | {"CONVENER_HOST_NAME": f"host-{number}"},
                    directory / "replicated-loops.log",
                )
            )
            for number in (1, 2)
        ]
        port = stack.enter_context(haproxy(ports, directory / "haproxy.log"))
        yield Replicas(port=port, api_ports=ports, pooler=pooler, apis=apis, loops=loops, environment=environment)
