"""A process with a few threads that call a provider, each time with a permit, until its standard input ends.

`permit_callers.py PLANE PROVIDER KEY THREADS`
"""

import http.client
import json
import sys
import threading
from typing import Any
from uuid import uuid4

_AGENTS = ("generation", "reflection", "ranking", "evolution", "proximity", "meta_review")


class Line:
    """A kept connection to one address."""

    def __init__(self, address: str, key: str = "") -> None:
        self._http = http.client.HTTPConnection(address, timeout=60)
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON of the answer."""
        self._http.request("POST", path, json.dumps(body), self._headers)
        answer = self._http.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else None


def call(stop: threading.Event, plane: Line, provider: Line, agent: str) -> None:
    """Call again and again, as a worker would, until it is time to stop."""
    while not stop.is_set():
        wanted = {"request_id": str(uuid4()), "model": "m", "agent_type": agent, "estimated_tokens": 10}
        status, permit = plane.post("/llm/permits", wanted)
        while status == 429:
            if stop.wait(permit["retry_after"]):
                return
            status, permit = plane.post("/llm/permits", wanted)
        assert status == 201, (status, permit)
        provider.post("/", {})
        told = {"token": permit["token"], "outcome": "success", "prompt_tokens": 10, "latency_ms": 300}
        status, answer = plane.post(f"/llm/permits/{permit['permit_id']}/settle", told)
        assert status == 200, (status, answer)


def main(plane: str, provider: str, key: str, threads: str) -> None:
    """Run so many callers."""
    stop = threading.Event()
    callers = [
        threading.Thread(target=call, args=(stop, Line(plane, key), Line(provider), _AGENTS[n % len(_AGENTS)]))
        for n in range(int(threads))
    ]
    for caller in callers:
        caller.start()
    sys.stdin.read()
    stop.set()
    for caller in callers:
        caller.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
