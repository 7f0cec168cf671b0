"""How the pool as a whole is told."""

from datetime import UTC, datetime

from rich.console import Console

from app.workers.cli.pool import board


def test_members_that_wait_are_told_with_their_reason_and_those_that_never_come_as_reduced_capacity() -> None:
    waits = [
        {"reason": "sbatch: invalid account", "members": 2, "is_failure": True},
        {"reason": "its job waits in the queue of slurm (PENDING: Resources)", "members": 1200, "is_failure": False},
    ]
    fleet = {
        "min_workers": 2,
        "max_workers": 5000,
        "hosts": [{"host": "lab", "size": 1202, "member_waits": waits}, {"host": "older", "size": 1}],
        "workers": {"ready": 0},
        "total": 0,
        "reduced_capacity": True,
        "reduced_reason": "2 members of lab cannot start: sbatch: invalid account",
        "resting": [],
    }
    console = Console(width=120)
    with console.capture() as captured:
        console.print(board(fleet, datetime(2030, 1, 1, tzinfo=UTC)))
    shown = captured.get()
    assert "Missing  1,200 of lab: its job waits in the queue of slurm (PENDING: Resources)" in shown
    assert shown.count("invalid account") == 1
