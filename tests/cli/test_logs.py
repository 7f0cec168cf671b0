"""What processes say, and what they keep to themselves."""

import json
import logging
from collections.abc import Iterator

import pytest

from app.logs import mask_secrets, set_up_logging


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
