"""The key of the gateway is read anew where it is refused, or about to expire."""

import asyncio
import base64
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.worker_agent.llm.conftest import Start, raw, wait_until_settled
from tests.worker_agent.llm.loopback import ReceivedRequest, ResponseWriter
from tests.worker_agent.llm.provider import MESSAGES, Provider, refuses, says
from worker_agent.llm import keys
from worker_agent.llm.keys import KeySource, read_key
from worker_agent.llm.settings import GatewaySettings, read_settings

NOW = datetime(2026, 1, 1, tzinfo=UTC)
_IN_TWO_DAYS = NOW + timedelta(days=2)


def _jwt(claims: dict[str, object]) -> str:
    return f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.x"


@pytest.mark.parametrize(
    ("text", "key", "expires_at"),
    [
        ("  plain\n", "plain", None),
        ('{"key": "k", "expires_at": "2026-01-03T00:00:00Z"}', "k", _IN_TWO_DAYS),
        ('{"access_token": "k", "expires_in": 172800}', "k", _IN_TWO_DAYS),
        (f'{{"token": "k", "expires_at": {_IN_TWO_DAYS.timestamp()}}}', "k", _IN_TWO_DAYS),
        (_jwt({"exp": _IN_TWO_DAYS.timestamp()}), _jwt({"exp": _IN_TWO_DAYS.timestamp()}), _IN_TWO_DAYS),
        (_jwt({"sub": "x"}), _jwt({"sub": "x"}), None),
        ("a.b.c", "a.b.c", None),
        ("{}", "", None),
    ],
)
def test_a_key_is_read_with_its_end(text: str, key: str, expires_at: datetime | None) -> None:
    result = read_key(text, NOW)
    assert (result.text, result.expires_at) == (key, expires_at)


@pytest.mark.parametrize("text", ["two\nlines", "{", "sch\u00f6n", '{"key": "k", "expires_at": "soon"}'])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_key(text, NOW)


def test_variables_name_file_and_command() -> None:
    variables = {"CONVENER_LLM_URL": "http://h/v1", "CONVENER_LLM_MODELS": "m"}
    settings = read_settings({**variables, "CONVENER_LLM_KEY_FILE": "/k", "CONVENER_LLM_KEY_COMMAND": "print-token"})
    assert settings is not None
    assert (settings.key_file, settings.key_command) == (Path("/k"), "print-token")


def accepts(key: Path) -> Provider:
    """A provider that knows one key: the one in the file."""

    def act(request: ReceivedRequest, writer: ResponseWriter) -> None:
        good = request.headers["authorization"] == f"Bearer {key.read_text().strip()}"
        (says("Yes.") if good else refuses(401))(request, writer)

    return Provider.of(then=act)


@pytest.mark.parametrize("stream", [False, True])
def test_a_renewed_key_is_taken_without_the_task_noticing(start: Start, tmp_path: Path, stream: bool) -> None:
    file = tmp_path / "key"
    file.write_text("first")
    bench = start(accepts(file), key="", key_file=file)
    model = bench.model()
    assert model.ask("Why?").text == "Yes."
    file.write_text("second\n")
    assert model.ask("And now?").text == "Yes."
    assert [each["outcome"] for each in bench.permits.settlements] == ["success", "success"]
    assert [sent.headers["authorization"] for sent in bench.upstream.requests] == [
        "Bearer first",
        "Bearer first",
        "Bearer second",
    ]


def test_a_command_is_run_anew_and_its_end_is_reported(start: Start, tmp_path: Path) -> None:
    file, command = tmp_path / "key", tmp_path / "command"
    file.write_text("first")
    # Long past, as of a token that the command keeps although it should have renewed it.
    command.write_text(f'#!/bin/sh\nprintf \'{{"key": "%s", "expires_at": "2020-01-01T00:00:00Z"}}\' "$(cat {file})"\n')
    command.chmod(0o700)
    bench = start(accepts(file), key="", key_command=str(command))
    assert bench.model().ask("Why?").text == "Yes."
    assert bench.permits.settlements[0]["key_expires_at"] == "2020-01-01T00:00:00+00:00"
    # An answer without it would say that another key has taken the place of the one that ends.
    raw(bench, {"messages": MESSAGES, "stream": True})
    wait_until_settled(bench, 2)
    assert bench.permits.settlements[1]["key_expires_at"] == "2020-01-01T00:00:00+00:00"


async def test_a_key_that_somebody_renews_in_time_is_told_of_by_nobody(tmp_path: Path) -> None:
    """Else tokens that are good for an hour would raise a critical alert all the time."""
    command = 'echo \'{"key": "hourly", "expires_in": 3600}\''
    source = KeySource(GatewaySettings(base_url="http://h", models=("m",), key_command=command))
    await source.current()
    assert source.expires_at is None
    file = tmp_path / "key"
    end = datetime.now(UTC) + timedelta(hours=5)
    file.write_text(json.dumps({"key": "old", "expires_at": end.isoformat()}))
    source = KeySource(GatewaySettings(base_url="http://h", models=("m",), key_file=file))
    await source.current()
    assert source.expires_at is None, "it has been written just now"
    written_at = (end - timedelta(days=90)).timestamp()
    os.utime(file, (written_at, written_at))
    source = KeySource(GatewaySettings(base_url="http://h", models=("m",), key_file=file))
    await source.current()
    assert source.expires_at == end
    command = 'echo \'{"key": "k", "expires_in": 169200}\''
    source = KeySource(GatewaySettings(base_url="http://h", models=("m",), key_command=command))
    await source.current()
    assert source.expires_at is not None, "this worker saw the last 47 h of its life begin, which may be one of months"
    fixed = KeySource(GatewaySettings(base_url="http://h", models=("m",), key=_jwt({"exp": end.timestamp()})))
    assert fixed.expires_at == end, "nobody renews it"


async def test_a_file_that_was_renewed_when_people_were_told_is_read_within_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    end = datetime.now(UTC) + timedelta(hours=40)
    file.write_text(json.dumps({"key": "old", "expires_at": end.isoformat()}))
    source = KeySource(GatewaySettings(base_url="http://h", models=("m",), key_file=file))
    assert (await source.current()).text == "old"
    file.write_text("new")
    assert (await source.current()).text == "old"
    monkeypatch.setattr(keys, "_FILE_AGAIN_SECONDS", 0.0)
    assert (await source.current()).text == "new"
    assert source.expires_at is None


async def test_a_key_that_is_about_to_expire_is_read_anew_and_one_that_cannot_be_read_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "key"
    soon = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    file.write_text(json.dumps({"key": "old", "expires_at": soon}))
    source = KeySource(GatewaySettings(base_url="http://h", models=("m",), key_file=file))
    assert (await source.current()).text == "old"
    file.write_text("new")
    assert (await source.current()).text == "new"
    file.write_text('{"key": "ne')
    assert (await source.renew(await source.current())).text == "new", "it is being written"
    file.unlink()
    assert (await source.renew(await source.current())).text == "new"


async def test_a_command_that_hangs_is_waited_for_once_by_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_COMMAND_SECONDS", 0.6)
    monkeypatch.setattr(keys, "_AGAIN_SECONDS", 0.5)
    runs = tmp_path / "runs"
    command = f"echo >>{runs}; sleep 60"
    source = KeySource(GatewaySettings(base_url="http://h", key="good", models=("m",), key_command=command))
    assert {key.text for key in await asyncio.gather(*(source.current() for _ in range(20)))} == {"good"}
    assert len(runs.read_text()) == 1
