"""`convener doctor`: what is held, what is not, and how it ends."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text

from app.cli import database_checks
from app.cli.checks import Check
from app.db.database import Database
from app.kernel.access import Role
from tests.support.command_line import CommandLine, Service, parse
from tests.support.ports import free_port
from tests.support.sql import execute
from tests.support.tls import issue, listening


def test_it_tells_each_protection_of_a_worker(offline: CommandLine) -> None:
    outcome = offline.run("doctor", "-o", "json")
    assert outcome.code == 0
    checks = {check["name"]: check for check in outcome.json["checks"]}
    assert checks["handlers: environment"]["status"] == "ok"
    if sys.platform == "linux":
        assert checks["handlers: daemon_memory"]["status"] == "ok"
    assert all(check["remedy"] for check in checks.values() if check["status"] != "ok")
    assert "handlers: environment" in offline.run("doctor").out


def test_a_check_that_cannot_be_made_is_a_failure(offline: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(command: list[str], **_: Any) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="no such module")

    monkeypatch.setattr(subprocess, "run", broken)
    outcome = offline.run("doctor", "-o", "json")
    assert outcome.code == 1
    (failed,) = [check for check in outcome.json["checks"] if check["status"] == "failed"]
    assert (failed["name"], "no such module" in failed["detail"]) == ("handlers", True)


@pytest.mark.parametrize(
    ("host", "days", "statuses"),
    [
        ("127.0.0.1", None, {"network": "ok"}),
        ("0.0.0.0", None, {"network": "warning"}),
        ("0.0.0.0", 300, {"network": "ok", "certificate": "ok"}),
        ("0.0.0.0", 10, {"network": "ok", "certificate": "warning"}),
    ],
)
def test_it_tells_whether_keys_cross_the_network_in_clear(
    offline: CommandLine, tmp_path: Path, host: str, days: int | None, statuses: dict[str, str]
) -> None:
    variables = {"CONVENER_HOST": host}
    if days is not None:
        files = issue(tmp_path / "tls", not_after=datetime.now(UTC) + timedelta(days=days))
        variables |= {"CONVENER_TLS_CERTIFICATE": str(files.certificate), "CONVENER_TLS_KEY": str(files.key)}
    outcome = offline.run("doctor", "-o", "json", **variables)
    checks = {check["name"]: check["status"] for check in outcome.json["checks"]}
    assert {name: checks.get(name) for name in ("network", "certificate") if name in checks} == statuses
    assert outcome.code == 0


def test_settings_that_make_no_sense_are_a_failure(offline: CommandLine, tmp_path: Path) -> None:
    outcome = offline.run("doctor", "-o", "json", CONVENER_TLS_CERTIFICATE=str(tmp_path), CONVENER_TLS_KEY="x")
    assert outcome.code == 1
    assert "no certificate with its key" in outcome.out


def test_it_tells_of_variables_disk_and_handlers(offline: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    wrong = {"CONVENER_POOOL_SIZE": "3", "CONVENER_WORKER_HANDLERS": "no_such_module"}
    outcome = offline.run("doctor", "-o", "json", **wrong)
    assert (outcome.code, outcome.err) == (1, "")
    checks = {check["name"]: check for check in outcome.json["checks"]}
    assert {name: checks[name]["status"] for name in ("variables", "disk", "handlers: import")} == {
        "variables": "warning",
        "disk": "failed",
        "handlers: import": "failed",
    }
    assert "did you mean CONVENER_POOL_SIZE?" in checks["variables"]["detail"]
    assert "no_such_module" in checks["handlers: import"]["detail"]
    assert outcome.json["checks"][0]["status"] == "failed"
    _parse_all(outcome.json)


def _parse_all(answer: Any) -> None:
    for check in answer["checks"]:
        for command in check["commands"]:
            parse(command)


def test_without_a_service_it_says_how_to_start_one(offline: CommandLine) -> None:
    checks = {check["name"]: check for check in offline.run("doctor", "-o", "json").json["checks"]}
    assert (checks["service"]["status"], checks["service"]["commands"][0]) == ("warning", "convener up")
    away = offline.run("doctor", "-o", "json", CONVENER_URL=f"http://127.0.0.1:{free_port()}", CONVENER_KEY="cvn_a_b")
    checks = {check["name"]: check["status"] for check in away.json["checks"]}
    assert (away.code, checks["service"]) == (1, "failed")
    assert "key" not in checks
    address = f"http://127.0.0.1:{free_port()}"
    named = offline.run("doctor", "-o", "json", "--url", address, CONVENER_KEY="cvn_a_b").json["checks"]
    assert any(check["name"] == "service" and address in check["detail"] for check in named)


def test_a_service_that_is_not_trusted_is_not_to_be_started(offline: CommandLine, tmp_path: Path) -> None:
    with listening(issue(tmp_path).context()) as server:
        variables = {"CONVENER_URL": f"https://localhost:{server.port}", "CONVENER_KEY": "cvn_a_b"}
        checks = {check["name"]: check for check in offline.run("doctor", "-o", "json", **variables).json["checks"]}
    assert "name its authority" in checks["service"]["remedy"]


async def test_it_asks_the_service_for_what_is_wrong(convener: CommandLine, live_service: Service) -> None:
    outcome = await convener("doctor", "-o", "json")
    checks = {check["name"]: check for check in outcome.json["checks"]}
    assert "key" in checks, checks["service"]
    assert {name: checks[name]["status"] for name in ("service", "key", "clock", "loops", "mode", "dead letters")} == {
        "service": "ok",
        "key": "ok",
        "clock": "ok",
        "dead letters": "ok",
        "loops": "failed",
        "mode": "failed",
    }
    assert checks["loops"]["commands"] == ["convener loops"]
    assert outcome.code == 1
    _parse_all(outcome.json)
    refused = await convener("doctor", "-o", "json", CONVENER_KEY="cvn_000000000000_x")
    checks = {check["name"]: check for check in refused.json["checks"]}
    assert (checks["service"]["status"], checks["key"]["status"], "mode" in checks) == ("ok", "failed", False)
    worker = await convener("doctor", "-o", "json", CONVENER_KEY=live_service.keys[Role.POOL])
    checks = {check["name"]: check["status"] for check in worker.json["checks"]}
    assert (checks["key"], checks["health"], "mode" in checks) == ("ok", "failed", False)


async def test_where_the_api_is_away_it_reads_the_database(offline: CommandLine, database_url: str) -> None:
    outcome = await offline("doctor", "-o", "json", CONVENER_DATABASE_URL=database_url, CONVENER_MODE="trusted_tester")
    checks = {check["name"]: check for check in outcome.json["checks"]}
    assert {name: checks[name]["status"] for name in ("schema", "pg_dump", "clock", "loops", "mode")} == {
        "schema": "ok",
        "pg_dump": "ok",
        "clock": "ok",
        "loops": "failed",
        "mode": "failed",
    }
    assert "trusted_tester, 5 to 50 workers; 0 live" in checks["mode"]["detail"]
    _parse_all(outcome.json)


async def test_a_server_that_is_too_old_is_told(
    offline: CommandLine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def old(_: object) -> str:
        return "14.23 (Debian 14.23-1)"

    monkeypatch.setattr(database_checks, "server_version", old)
    outcome = await offline("doctor", "-o", "json", CONVENER_DATABASE_URL=database_url)
    checks = {check["name"]: check for check in outcome.json["checks"]}
    assert checks["database"]["status"] == "failed"
    assert "PostgreSQL 14.23 (Debian 14.23-1), and Convener needs 15 or newer" in checks["database"]["detail"]


async def test_a_schema_that_does_not_fit_is_told_with_its_mend(offline: CommandLine, own_database: Database) -> None:
    await execute(own_database, "DELETE FROM served_revisions")
    for revision, commands in (("2026_12_02_closed_holds", ["convener db migrate"]), ("next_year", [])):
        await execute(own_database, "UPDATE alembic_version SET version_num = $1", revision)
        outcome = await offline("doctor", "-o", "json", CONVENER_DATABASE_URL=own_database.url)
        (schema,) = [check for check in outcome.json["checks"] if check["name"] == "schema"]
        assert (schema["status"], schema["commands"]) == ("failed", commands)


async def test_a_database_that_is_away_is_told(offline: CommandLine, caplog: pytest.LogCaptureFixture) -> None:
    url = f"postgresql://a:b@127.0.0.1:{free_port()}/x"
    outcome = await offline("doctor", "-o", "json", CONVENER_DATABASE_URL=url)
    assert [check["status"] for check in outcome.json["checks"] if check["name"] == "database"] == ["failed"]
    assert not [record for record in caplog.records if record.name == "app.outage"], "before the checks, on stderr"


async def test_a_pooler_that_is_away_is_told(offline: CommandLine, database_url: str) -> None:
    pooler = f"postgresql://a:b@127.0.0.1:{free_port()}/x"
    variables = {"CONVENER_DATABASE_URL": pooler, "CONVENER_DATABASE_DIRECT_URL": database_url}
    outcome = await offline("doctor", "-o", "json", **variables)
    (check,) = [check for check in outcome.json["checks"] if check["name"] == "connections"]
    assert (check["status"], check["remedy"]) == ("failed", "start the connection pooler, and repeat")
    assert check["detail"].startswith("CONVENER_DATABASE_URL leads nowhere: Connect")


async def test_a_pooler_that_is_slow_makes_no_clock_wrong(
    offline: CommandLine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object) -> Iterator[Check]:
        later = SimpleNamespace(now=lambda zone: datetime.now(zone) + timedelta(seconds=10))
        monkeypatch.setattr(database_checks, "datetime", later)
        return iter(())

    monkeypatch.setattr(database_checks, "pooler_checks", slow)
    outcome = await offline("doctor", "-o", "json", CONVENER_DATABASE_URL=database_url)
    checks = {check["name"]: check for check in outcome.json["checks"]}
    assert checks["clock"]["status"] == "ok"


@pytest.mark.slow
async def test_whose_locks_keep_it_from_reading_is_told(offline: CommandLine, own_database: Database) -> None:
    async with own_database.engine.connect() as holder:
        pid = (await holder.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        # As if it had been held for longer than any transaction of ours.
        await holder.execute(text("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE"))
        await holder.execute(text("SELECT pg_sleep(10)"))
        outcome = await offline("doctor", "-o", "json", CONVENER_DATABASE_URL=own_database.url)
        await holder.rollback()
    (check,) = [check for check in outcome.json["checks"] if check["name"] == "health: locks_held"]
    assert (check["status"], f"pg_terminate_backend({pid})" in check["remedy"]) == ("failed", True)
    assert "database" not in [check["name"] for check in outcome.json["checks"]]
