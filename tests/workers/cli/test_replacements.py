"""How the story of a replacement is told."""

from datetime import UTC, datetime

from rich.console import Console

from app.workers.cli.pool import replacement_table


def test_steps_are_seconds_since_the_loss() -> None:
    item = {
        "worker_name": "host-1",
        "cause": "the process was killed by SIGKILL, and nobody knows by whom or why",
        "detected_at": "2030-01-01T12:00:00Z",
        "requested_at": "2030-01-01T12:00:00.050Z",
        "started_at": "2030-01-01T12:00:00.2Z",
        "registered_at": "2030-01-01T12:00:01Z",
        "first_lease_at": None,
        "closed_at": None,
        "closed_reason": None,
    }
    console = Console(width=80)
    with console.capture() as captured:
        console.print(replacement_table([item], datetime(2030, 1, 1, 12, 0, 12, tzinfo=UTC)))
    header, line = captured.get().splitlines()
    assert header.split() == ["WORKER", "LOST", "REQUESTED", "STARTED", "REGISTERED", "FIRST", "LEASE", "CAUSE"]
    assert line.split()[:11] == ["host-1", "12", "s", "ago", "+0.05", "s", "+0.20", "s", "+1.00", "s", "-"]
    assert "the process" in line
