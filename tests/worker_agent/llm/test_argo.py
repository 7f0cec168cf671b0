"""Through the real argo-proxy: what it does to calls and answers, and what a handler sees of that."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.ports import free_port
from tests.worker_agent.llm.conftest import Bench, Start, raw, wait_until_settled
from tests.worker_agent.llm.loopback import Loopback, ReceivedRequest, ResponseWriter, serving
from tests.worker_agent.llm.provider import MESSAGES, Act, Provider, cuts_the_stream, hangs, refuses, says
from worker_agent.failures import Transient

MODEL = "argo:gpt-4.1-nano"
_CONFIG = """\
config_version: "3"
host: 127.0.0.1
port: {port}
user: convener
argo_base_url: {upstream}
skip_url_validation: true
verbose: false
"""


class Behind:
    """The provider behind the proxy, which each test replaces."""

    def __init__(self) -> None:
        self.provider = Provider.of()
        self.server: Loopback | None = None

    def respond(self, request: ReceivedRequest, writer: ResponseWriter) -> None:
        if request.method == "GET":  # the proxy asks for the models when it starts, and does without
            writer.answer(404, {})
            return
        self.provider.respond(request, writer)

    @property
    def requests(self) -> list[ReceivedRequest]:
        """The calls since the test began."""
        assert self.server is not None
        return [request for request in self.server.requests if request.method == "POST"]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Behind]]:
    """Its address, and what is behind it."""
    home, port, behind = tmp_path_factory.mktemp("argo"), free_port(), Behind()
    with serving(behind.respond) as behind.server:
        config = home / "config.yaml"
        config.write_text(_CONFIG.format(port=port, upstream=behind.server.url))
        with (home / "log").open("wb") as log:
            child = subprocess.Popen(
                [str(Path(sys.executable).with_name("argo-proxy")), "serve", str(config)],
                cwd=home,
                env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(url, child, home / "log")
            yield f"{url}/v1", behind
        finally:
            child.kill()
            child.wait()


def _wait_for(url: str, child: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert child.poll() is None, log.read_text()
        try:
            httpx.get(f"{url}/health", trust_env=False)
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(log.read_text())


@pytest.fixture
def argo(proxy: tuple[str, Behind], start: Start) -> "Argo":
    """A gateway that goes through the proxy."""
    url, behind = proxy
    assert behind.server is not None
    behind.server.requests.clear()
    return Argo(url, behind, start)


class Argo:
    """Starts the gateway with what is to be behind the proxy."""

    def __init__(self, url: str, behind: Behind, start: Start) -> None:
        self.behind = behind
        self._url = url
        self._start = start

    def __call__(self, *script: Act, then: Act | None = None, **options: object) -> Bench:
        self.behind.provider = Provider.of(*script, then=then)
        options = {"models": (MODEL,), **options}
        return self._start(Provider.of(), base_url=self._url, **options)


def test_an_answer_comes_through(argo: Argo) -> None:
    answer = argo(says("It is a law.")).model().ask("Why?", max_tokens=9)

    assert (answer.text, answer.degraded) == ("It is a law.", None)
    assert argo.behind.requests[0].body["max_completion_tokens"] == 9, "the proxy renames the limit"


def test_a_schema_comes_through(argo: Argo) -> None:
    schema = {"type": "object", "properties": {"p": {"type": "integer"}}}

    argo(says('{"p": 3}')).model().ask("Which?", schema=schema)

    assert argo.behind.requests[0].body["response_format"]["json_schema"]["schema"] == schema


def test_a_name_that_the_proxy_does_not_know_is_answered_by_another_model_and_noticed(argo: Argo) -> None:
    answer = argo(says("I am somebody else."), models=("argo:no-such-model",)).model().ask("Why?")

    assert answer.degraded == "substituted"


def test_a_429_arrives_bare_and_the_back_off_stands_on_its_own(argo: Argo) -> None:
    bench = argo(refuses(429, {"retry-after": "3600", "x-ratelimit-reset-requests": "1s"}))

    assert bench.model().ask("Why?").text == "It is a law."

    assert bench.permits.outcomes == ["rate_limited", "success"]
    assert "retry_after_seconds" not in bench.permits.settlements[0]


@pytest.mark.parametrize(
    "trouble",
    [
        refuses(500),
        refuses(503, body=b"<html>busy</html>"),
        refuses(200, body={"id": "1"}),
        refuses(200, body=b"garbage"),
    ],
    ids=["500", "html", "no choices", "garbage"],
)
def test_trouble_behind_the_proxy_is_mended_by_asking_again(argo: Argo, trouble: Act) -> None:
    bench = argo(trouble)

    assert bench.model().ask("Why?").text == "It is a law."

    assert bench.permits.outcomes == ["server_error", "success"]


def test_a_proxy_that_reaches_nobody_does_not_make_the_request_wrong(argo: Argo) -> None:
    def hangs_up(request: ReceivedRequest, writer: ResponseWriter) -> None:
        raise ConnectionResetError

    bench = argo(hangs_up)

    assert bench.model().ask("Why?").text == "It is a law."

    assert bench.permits.outcomes == ["server_error", "success"]


def test_silence_behind_the_proxy_is_given_up_in_our_own_time(argo: Argo) -> None:
    bench = argo(hangs(4.0), total_seconds=0.3, attempts=1)

    with pytest.raises(Transient, match="no answer in time"):
        bench.model().ask("Why?")


def test_a_stream_comes_through(argo: Argo) -> None:
    bench = argo(says("It is a law."))

    _, _, content = raw(bench, {"messages": MESSAGES, "stream": True})

    assert content.endswith(b"data: [DONE]\n\n")
    wait_until_settled(bench, 1)
    assert bench.permits.outcomes == ["success"]


def test_a_stream_that_was_cut_behind_the_proxy_does_not_look_whole(argo: Argo) -> None:
    bench = argo(cuts_the_stream)

    _, _, content = raw(bench, {"messages": MESSAGES, "stream": True})

    assert b"[DONE]" not in content
    assert b"convener_stream_broken" in content


def test_a_stream_of_garbage_is_asked_for_again(argo: Argo) -> None:
    bench = argo(refuses(200, body=b"garbage"))

    _, _, content = raw(bench, {"messages": MESSAGES, "stream": True})

    assert content.endswith(b"data: [DONE]\n\n")
    wait_until_settled(bench, 2)
    assert bench.permits.outcomes == ["server_error", "success"]
