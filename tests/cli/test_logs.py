"""What processes say, and what they keep to themselves."""

import fcntl
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from app.logs import _QUIET, start_logging
from app.settings import Settings
from worker_agent.log_lines import mask_secrets, set_up_logging

# Line ends of every kind, sequences for terminals (also in their one-byte form), deletion, and marks of direction.
HOSTILE = ("\n", "\r", "\r\n", "\x1b[2K", "\x1b]0;owned\x07", "\x9b2J", "\x85", "\x7f", "\x00", "\u2028", "\u2029",
           "\u202e", "\u2066", "\u061c", "\ud800")  # fmt: skip


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    """The logging of the test run, as it was."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    root.handlers.clear()
    levels = {None: root.level} | {name: logging.getLogger(name).level for name in _QUIET}
    yield
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", as_json=False)
    logging.getLogger("app.main").info("serving on %s", "http://x", extra={"port": 1})
    logging.getLogger("app.main").debug("unheard")
    out, err = capsys.readouterr()
    assert out == ""
    at, _, line = err.partition(" ")
    assert line == "INFO    app.main: serving on http://x (port=1)\n"
    assert abs(datetime.now().astimezone() - datetime.fromisoformat(at)) < timedelta(minutes=5), "with date and offset"


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
    start_logging(Settings())
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
    set_up_logging("info", as_json=as_json)
    text = f"model{stranger}at=now level=error event=forged"
    logging.getLogger("worker_agent").warning("the model %s fails", text, extra={"fields": {"why": text, "n": 1}})
    (line,) = _lines(capsys)
    assert as_json or line.endswith(", n=1)")


_WRITER = """
import logging, os, sys, time
from pathlib import Path
from worker_agent import log_lines
log_lines.MAX_BYTES = 20_000
log_lines.set_up_logging("info", as_json=True, file=Path(sys.argv[1]))
print("on stdout", flush=True)
for number in range(1000):
    logging.info("%s %d", sys.argv[2], number)
    if os.fstat(2).st_size > log_lines.MAX_BYTES:
        time.sleep(0.002)  # the other exchanges the file, and may have lost the processor meanwhile
raise SystemExit("the end")
"""


def test_full_files_are_exchanged_and_no_line_of_two_writers_is_lost(tmp_path: Path) -> None:
    """Of about 200,000 bytes those of the four newest files are kept, and each line in them is whole and in order."""
    path = tmp_path / "a.log"
    command = [sys.executable, "-c", _WRITER, str(path)]
    writers = [subprocess.Popen([*command, name]) for name in ("one", "two")]
    assert [writer.wait() for writer in writers] == [1, 1]
    files = [path, *(tmp_path / f"a.log.{number}" for number in (1, 2, 3))]
    assert sorted(tmp_path.iterdir()) == files
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert all(file.stat().st_size < 40_000 for file in files)
    lines = [line for file in reversed(files) for line in file.read_text().splitlines()]
    assert lines[-1] == "the end", "what else goes to stderr stands there too"
    for name in ("one", "two"):
        # The last words of the one, and their end of line, may stand on both sides of a line of the other.
        own = [line.removeprefix("the end") for line in lines if f'"{name} ' in line]
        messages = [json.loads(line)["message"].split() for line in own]
        numbers = [int(number) for _, number in messages]
        assert numbers == list(range(1000))[1000 - len(numbers) :], "none is missing since the oldest that is kept"


def test_a_writer_that_hangs_while_it_exchanges_the_file_holds_up_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    with path.open("a") as full:
        fcntl.flock(full, fcntl.LOCK_EX)
        assert subprocess.run([sys.executable, "-c", _WRITER, str(path), "one"], timeout=60).returncode == 1
    assert len(path.read_text().splitlines()) == 1002
    assert list(tmp_path.iterdir()) == [path]


_FULL = """
import logging, os, resource, sys
from pathlib import Path
from worker_agent import log_lines
log_lines.MAX_BYTES = 10_000
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
log_lines.set_up_logging("info", as_json=True, file=Path(sys.argv[1]))
for number in range(500):
    logging.info("%d", number)
open(sys.argv[2], "w").write(str(len(os.listdir("/proc/self/fd"))))
"""


def test_a_file_that_takes_no_more_is_exchanged_and_costs_no_descriptors(tmp_path: Path) -> None:
    """Nothing can be written beyond the size at which the file is exchanged, as on a full disk."""
    path, count = tmp_path / "a.log", tmp_path / "count"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    subprocess.run([sys.executable, "-c", _FULL, str(path), str(count)], env=environment, check=True)
    assert int(count.read_text()) < 10
    assert '"499"' in path.read_text()
    assert (tmp_path / "a.log.3").exists()


def test_a_device_that_takes_the_log_keeps_its_mode() -> None:
    mode = Path("/dev/null").stat().st_mode
    script = "from pathlib import Path; from worker_agent import log_lines; "
    script += "log_lines.set_up_logging('info', as_json=False, file=Path('/dev/null'))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    assert Path("/dev/null").stat().st_mode == mode


def test_a_log_that_cannot_be_written_ends_the_program_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "unread")
    for path in (tmp_path / "missing" / "a.log", tmp_path, tmp_path / "unread"):
        with pytest.raises(SystemExit) as exit_:
            start_logging(Settings(log_file=path))
        assert exit_.value.code == 2
        assert f"CONVENER_LOG_FILE: cannot write {path}" in capsys.readouterr().err


def test_so_it_does_for_workers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "worker_agent", "--url", "http://127.0.0.1:9", "--log-file", str(tmp_path)]
    environment = {**os.environ, "CONVENER_KEY": "a-key"}
    command += ["--handler", "ranking=command:true"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (2, f"convener-worker: cannot log to {tmp_path} (Is a directory)\n")


def test_the_log_tells_first_of_variables_that_are_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVENER_PORTT", "9")
    start_logging(Settings())
    (line,) = _lines(capsys)
    assert line.endswith(
        "WARNING app.logs: CONVENER_PORTT is ignored, as there is no such variable; did you mean CONVENER_PORT?"
    )


def _lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was written, each line of it free of characters that are not printed."""
    lines = capsys.readouterr().err.removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in lines), lines
    return lines
