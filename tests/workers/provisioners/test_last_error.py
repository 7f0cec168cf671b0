"""The last error in a log: its end of a traceback, bounded, and without secrets."""

import json
from pathlib import Path

import pytest

from app.workers.provisioners.last_error import last_error

_AT = "2026-11-28T12:30:01.250+01:00"
_INFO, _WARNING = f"{_AT} INFO    worker_agent: registered", f"{_AT} WARNING worker_agent: call failed"
_ERROR = f"{_AT} ERROR   worker_agent: crashed"
_TRACE = ["  Traceback (most recent call last):", '    File "x.py", line 1, in f', "  KeyError: 'x'"]


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([], None),
        ([_INFO, _WARNING], None),
        ([_ERROR, _INFO], "worker_agent: crashed"),
        ([_ERROR, *_TRACE], "worker_agent: crashed: KeyError: 'x'"),
        ([_ERROR, *_TRACE, _WARNING, *_TRACE, _INFO], "worker_agent: crashed: KeyError: 'x'"),
        ([_INFO, "Traceback (most recent call last):", '  File "x.py"', "ImportError: no y", ""], "ImportError: no y"),
        (["UserWarning: old", _INFO], None),
        ([json.dumps({"level": "info", "message": "up"})], None),
        (
            [json.dumps({"level": "error", "message": "crashed", "exception": "Traceback\n  KeyError: 1"})],
            "crashed: KeyError: 1",
        ),
        (["{no json"], "{no json"),
    ],
)
def test_which_line_it_is(tmp_path: Path, lines: list[str], error: str | None) -> None:
    log_file = tmp_path / "log"
    log_file.write_text("\n".join(lines))
    assert last_error(log_file) == error


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("key cvn_abc_hidden1 refused", "hidden1"),
        ("cannot reach postgresql://me:hidden1@host/db", "hidden1"),
        ("401 for Authorization: Bearer hidden1", "hidden1"),
        ('{"api_key": "hidden1"}', "hidden1"),
        ("password=hidden1", "hidden1"),
        ("the key of the model is sk-model", "sk-model"),
    ],
)
def test_no_secret_is_shown(tmp_path: Path, line: str, secret: str) -> None:
    (tmp_path / "log").write_text(line)
    error = last_error(tmp_path / "log", secrets=["sk-model"])
    assert error is not None
    assert secret not in error
    assert "***" in error


def test_it_is_bounded_and_steers_no_terminal(tmp_path: Path) -> None:
    log_file = tmp_path / "log"
    log_file.write_bytes(b"\x1b[2J\xff" + b"x" * 100_000)
    assert len(last_error(log_file) or "") == 300
    log_file.write_bytes(b"old\n\x1b[2Jnew\xff")
    assert last_error(log_file, 4) == "\\x1b[2Jnew\N{REPLACEMENT CHARACTER}"
    assert last_error(log_file, 1000) == "\\x1b[2Jnew\N{REPLACEMENT CHARACTER}"  # another file than at the start
    assert last_error(tmp_path / "nowhere") is None
