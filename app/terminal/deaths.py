"""Sentences on workers that have died: how, their last error, and where their logs are."""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime

from app.kernel.text import MAX_TEXT, printable
from app.terminal.client import Client, Json
from app.terminal.failures import Failure

_MAX_WORKERS = 5
_RECENT_SECONDS = 600.0
_DEATHS = ("lost", "failed")


def unique_lines(workers: Iterable[Json]) -> list[str]:
    """A line for each of these workers that has died; one for all that have died alike."""
    counts = Counter(_line(worker) for worker in workers if worker["state"] in _DEATHS)
    return [f"{line} ({count} times)" if count > 1 else line for line, count in counts.items()]


def death_lines(client: Client, worker_ids: Iterable[str]) -> list[str]:
    """The lines of the first five of these workers, as far as the key may see them."""
    try:
        workers = [client.get(f"/workers/{worker_id}") for worker_id in list(dict.fromkeys(worker_ids))[:_MAX_WORKERS]]
    except Failure:  # what was asked for is shown without them
        return []
    return unique_lines(workers)


def recent_deaths(client: Client) -> list[str]:
    """The lines of the workers that were lost last, within ten minutes."""
    try:
        losses = client.get("/replacements", limit=_MAX_WORKERS)["items"]
    except Failure:
        return []
    ages = {item["lost_worker_id"]: client.now - datetime.fromisoformat(item["detected_at"]) for item in losses}
    return death_lines(client, [worker for worker, age in ages.items() if age.total_seconds() < _RECENT_SECONDS])


def _line(worker: Json) -> str:
    errors = worker["recent_errors"] or []
    error = f"; last error: {printable(str(errors[-1].get('message')))[:MAX_TEXT]}" if errors else ""
    return f"{worker['name']} is {worker['state']}: {worker['ended_reason']}{error}; {log_place(worker)}"


def log_place(worker: Json) -> str:
    """Where the log of a worker is."""
    host = worker["host"] or "its host"
    if worker["log_file"]:
        return f"log: {worker['log_file']} on {host}"
    process = f"process {worker['pid']} " if worker["pid"] else "it "
    return (
        f"log: with whoever has started {process}on {host}; of the loops there in logs/workers of their state directory"
    )
