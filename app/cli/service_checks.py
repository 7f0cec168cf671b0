"""Checks of the service over its API: address, key, clock, and what it tells of itself."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import httpx

from app.cli import findings
from app.cli.checks import Check, Status
from app.cli.database_checks import database_checks
from app.health.rules.finding import Finding, Level
from app.health.rules.snapshot import ModelTrouble
from app.kernel.text import printable
from app.llm.rules.conditions import ServiceState
from app.terminal.client import Client, Json
from app.terminal.connection import Address, find_access, find_address
from app.terminal.failures import ExitCode, Failure, first_line
from worker_agent.connections.clients import advice, open_client

_SECONDS = 5.0
_ANOTHER = "give its address in CONVENER_URL"


class Service:
    """The service that commands would ask; `is_there` once it has answered, `is_own` unless it is another machine's."""

    def __init__(self, url: str | None) -> None:
        self._url = url
        self.is_there = False
        self.is_own = True

    def checks(self) -> Iterator[Check]:
        """Yield the checks, of which none raises."""
        try:
            address = find_address(self._url)
        except Failure as failure:
            yield _failed("address", failure)
            return
        self.is_own = address.is_own
        yield from self._reach(address)
        if not self.is_there:
            return
        try:
            client = Client(find_access(self._url))
        except Failure as failure:
            yield _failed("key", failure)
            return
        with client:
            yield from _ask(client)

    def database_checks(self) -> Iterator[Check]:
        """Yield the checks of the database, as far as it is that of this service."""
        return database_checks(is_alone=not self.is_there, is_own=self.is_own)

    def _reach(self, address: Address) -> Iterator[Check]:
        start = time.time()
        try:
            with open_client(address.url, address.trust, timeout=_SECONDS) as http:
                answer = http.get("/readyz")
        except (httpx.HTTPError, OSError, ValueError) as error:
            yield Check(
                name="service",
                # Where nobody has set up anything, that is no fault.
                status=Status.FAILED if address.is_named else Status.WARNING,
                detail=f"nothing answers at {address.url} ({first_line(error)})",
                remedy=advice(error, address.url) or f"start it with `convener up`, or {_ANOTHER}",
            )
            return
        self.is_there = True
        yield _readiness(answer, address.url)
        yield from _clock(answer, (start + time.time()) / 2)


def _readiness(answer: httpx.Response, url: str) -> Check:
    if answer.is_success:
        detail = f"it answers at {url}; its database and schema are ready"
        return Check(name="service", status=Status.OK, detail=detail)
    try:
        problem = dict(answer.json())
    except (ValueError, TypeError):
        problem = {}
    if "code" not in problem:
        detail = f"{url} answers, but not like Convener ({answer.status_code})"
        remedy = f"a proxy or another program may stand there: {_ANOTHER}"
        return Check(name="service", status=Status.FAILED, detail=detail, remedy=remedy)
    remedy = "`convener db status` looks at the database itself, and `convener db migrate` brings its schema up to date"
    detail = printable(str(problem.get("detail") or problem["code"]))
    return Check(name="service", status=Status.FAILED, detail=detail, remedy=remedy)


def _clock(answer: httpx.Response, local: float) -> Iterator[Check]:
    try:
        # In the middle of the second that the header names.
        apart = parsedate_to_datetime(answer.headers.get("date", "")).timestamp() + 0.5 - local
    except ValueError:
        return
    yield findings.clock_check(apart, "the service's")


def _failed(name: str, failure: Failure) -> Check:
    detail = ": ".join([failure.message, *failure.details])
    return Check(name=name, status=Status.FAILED, detail=detail, remedy=failure.hint or "")


def _ask(client: Client) -> Iterator[Check]:
    """Yield what the service tells of itself, as far as the key may see it."""
    looks: list[tuple[str, Callable[[Client], Iterator[Check]]]] = [
        *(("key", _key), ("health", _health), ("alerts", _alerts)),
        *(("models", _models), ("mode", _mode), ("dead letters", _letters)),
    ]
    for name, look in looks:
        try:
            yield from look(client)
        except Failure as failure:
            # Not for this key to see, or a service of an earlier version.
            is_hidden = getattr(failure, "status", None) == 403 or failure.code is ExitCode.NOT_FOUND
            if not is_hidden:
                yield _failed(name, failure)
            # Every further one would say the same.
            if failure.code in (ExitCode.UNREACHABLE, ExitCode.KEY) and not is_hidden:
                return


def _key(client: Client) -> Iterator[Check]:
    yield findings.key_check(client.get("/whoami"))


def _health(client: Client) -> Iterator[Check]:
    report = client.report("/health/report")
    pool, queue = report["worker_pool_health"], report["queue_health"]
    if pool is None:
        status = Status.OK if report["overall_health"] == "healthy" else Status.FAILED
        detail = f"{report['overall_health']}; this key may not see why"
        remedy = "`convener key create monitor --label doctor` makes a key that may"
        yield Check(name="health", status=status, detail=detail, remedy=remedy)
        return
    workers = {"healthy": pool["healthy_workers"], "workers": pool["total_workers"]}
    reasons = [_finding(reason) for reason in report["reasons"]]
    yield from findings.report_checks(reasons, **workers, waiting=queue["total_pending_tasks"])


def _finding(reason: Json) -> Finding:
    message, advice = str(reason["message"]), reason.get("advice") or ""
    return Finding(code=reason["code"], level=Level(reason["level"]), message=message, advice=advice)


def _alerts(client: Client) -> Iterator[Check]:
    for alert in client.pages("/alerts", None)[0]:
        if alert["rule"] in findings.OF_ALERTS_ALONE:
            is_critical = alert["severity"] == "critical"
            yield findings.alert_check(alert["rule"], alert["summary"], alert["advice"], is_critical=is_critical)


def _models(client: Client) -> Iterator[Check]:
    for model in client.pages("/llm/models", None)[0]:
        until, expires = (
            model[name] and datetime.fromisoformat(model[name]) for name in ("state_until", "key_expires_at")
        )
        left = (expires - datetime.now(UTC)).total_seconds() if expires else None
        trouble = ModelTrouble(state=ServiceState(model["state"]), until=until, key_seconds_left=left)
        yield findings.model_check(model["model"], trouble)


def _mode(client: Client) -> Iterator[Check]:
    fleet = client.get("/fleet")
    yield findings.mode_check(client.get("/config")["mode"], fleet["min_workers"], fleet["max_workers"], fleet["total"])


def _letters(client: Client) -> Iterator[Check]:
    since = (client.now - timedelta(hours=1)).isoformat()
    letters = client.get("/dead-letters", limit=findings.MAX_LETTERS, failed_after=since)["items"]
    yield findings.letters_check(letters)
