"""An answer whose encryption breaks has not come, as one that breaks off; that is no error of the program."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.tls import ALERT_IN_CLEAR, issue, listening
from worker_agent.llm.outcomes import CallFailure, Outcome
from worker_agent.llm.permits import PermitClient
from worker_agent.llm.settings import GatewaySettings
from worker_agent.llm.upstream import AnswerStream, StreamBroken, UpstreamClient

_CHUNK = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
_SETTINGS = GatewaySettings(base_url="https://127.0.0.1/v1", models=("gpt-4.1",))


@pytest.fixture(params=[b"", _HEAD + _CHUNK], ids=["head", "body"])
def http(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[httpx.AsyncClient]:
    """A client of a server whose encryption breaks before or in its answer."""
    certificate = issue(tmp_path)
    trust = ssl.create_default_context(cafile=certificate.ca_file)
    with listening(certificate.context(), request.param, beneath=ALERT_IN_CLEAR) as server:
        yield httpx.AsyncClient(base_url=f"https://127.0.0.1:{server.port}", verify=trust, trust_env=False)


async def test_an_answer_as_a_whole(http: httpx.AsyncClient) -> None:
    answer = await UpstreamClient(_SETTINGS, http).ask({"model": "gpt-4.1"}, None)
    assert isinstance(answer, CallFailure)
    assert answer.outcome is Outcome.SERVER_ERROR


async def test_a_stream(http: httpx.AsyncClient) -> None:
    stream = await UpstreamClient(_SETTINGS, http).open_stream({"model": "gpt-4.1"}, None)
    if isinstance(stream, AnswerStream):
        with pytest.raises(StreamBroken) as caught:
            assert [chunk async for chunk in stream.chunks()] == []
        stream = caught.value.failure
    assert stream.outcome is Outcome.SERVER_ERROR


async def test_an_answer_of_the_control_plane(http: httpx.AsyncClient) -> None:
    assert await PermitClient(http, lambda: "key").cached_answer("a digest", "m") is None
