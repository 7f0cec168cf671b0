"""What processes say, and what they keep to themselves."""

import json
import logging
from collections.abc import Iterator

import pytest

from app.logs import mask_secrets, set_up_logging
from worker_agent import logs as worker_logs

# Line ends of every kind, sequences for terminals (also in their one-byte form), deletion, and marks of direction.
HOSTILE = ("\n", "\r", "\r\n", "\x1b[2K", "\x1b]0;owned\x07", "\x9b2J", "\x85", "\x7f", "\x00", "\u2028", "\u2029",
           "\u202e", "\u2066", "\u061c", "\ud800")  # fmt: skip


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    """The logging of the test run, as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info")
    logging.getLogger("app.main").info("serving on %s", "http://x", extra={"port": 1})
    logging.getLogger("app.main").debug("unheard")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(" INFO    app.main: serving on http://x (port=1)\n")
    assert err.count("\n") == 1


def test_one_json_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", as_json=True)
    try:
        raise ValueError("a\nb")
    except ValueError:
        logging.getLogger("app.x").exception("went wrong", extra={"task": 7, "message2": "more"})
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["logger"], line["message"], line["task"]) == ("error", "app.x", "went wrong", 7)
    assert line["time"].endswith("+00:00")
    assert "ValueError: a\nb" in line["exception"]


@pytest.mark.parametrize("as_json", [False, True])
def test_secrets_are_masked_wherever_they_stand(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    set_up_logging("info", as_json=as_json)
    key = "cvn_4f0c9d2a71be_hush-3_hush"
    try:
        raise ValueError(key)
    except ValueError:
        logging.getLogger("app.x").exception("with %s", key, extra={"key": key})
    logging.getLogger("app.x").info("at postgresql://me:hidden@host/db")
    err = capsys.readouterr().err
    assert err.count("cvn_4f0c9d2a71be_***") == 3
    assert "hush" not in err
    assert "hidden" not in err


def test_mask() -> None:
    assert mask_secrets("Bearer cvn_a1_b2-c_3, cvn_a1_***") == "Bearer cvn_a1_***, cvn_a1_***"
    assert mask_secrets("http://127.0.0.1:8765/a@b") == "http://127.0.0.1:8765/a@b"
    assert (
        mask_secrets("postgresql://u:p@h:5432/d and postgresql://u@h/d")
        == "postgresql://u:***@h:5432/d and postgresql://u@h/d"
    )


def test_chatter_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info")
    for name in ("alembic.runtime.plugins.x", "httpcore", "httpx"):
        logging.getLogger(name).info("chatter")
        logging.getLogger(name).warning("trouble with %s", name)
    err = capsys.readouterr().err
    assert "chatter" not in err
    assert err.count("trouble") == 3


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("stranger", HOSTILE)
def test_text_of_strangers_forges_no_line_and_steers_no_terminal(
    capsys: pytest.CaptureFixture[str], as_json: bool, stranger: str
) -> None:
    set_up_logging("info", as_json=as_json)
    text = f"model{stranger}03:00:00.000 ERROR   app.main: forged"
    logging.getLogger("app.x").warning("the model %s fails", text, extra={"model": text, "names": [text]})
    logging.getLogger("worker_agent").warning("the model %s fails", text)
    assert len([line for line in _lines(capsys) if "forged" in line]) == 2
    try:
        raise ValueError(text)
    except ValueError:
        logging.getLogger("app.x").exception("went wrong")
    lines = _lines(capsys)
    assert not [line for line in lines if line.startswith(("03:00", "forged"))]
    assert as_json or all(line.startswith("  ") for line in lines[1:])


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("stranger", HOSTILE)
def test_neither_do_the_lines_of_workers(capsys: pytest.CaptureFixture[str], as_json: bool, stranger: str) -> None:
    worker_logs.set_up_logging("info", as_json=as_json)
    text = f"model{stranger}at=now level=error event=forged"
    logging.getLogger("worker_agent").warning("the model %s fails", text, extra={"fields": {"why": text, "n": 1}})
    (line,) = _lines(capsys)
    assert as_json or line.endswith(" n=1")


def _lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was written, each line of it free of characters that are not printed."""
    lines = capsys.readouterr().err.removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in lines), lines
    return lines
