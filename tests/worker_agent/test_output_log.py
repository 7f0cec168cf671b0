"""What a handler writes is kept within bounds, whole at its beginning and its end."""

import os
import random

import pytest

from worker_agent.output_log import HEAD_BYTES, TAIL_BYTES, OutputLog
from worker_agent.wire import LogPiece


def _drained(log: OutputLog) -> list[LogPiece]:
    pieces: list[LogPiece] = []
    while taken := log.take():
        assert sum(len(piece.text.encode()) for piece in taken) <= 64 << 10
        pieces += taken
    return pieces


def _check_order(pieces: list[LogPiece]) -> None:
    end = 0
    for piece in pieces:
        assert piece.start >= end
        end = piece.start + len(piece.text.encode())


@pytest.mark.parametrize("seed", range(20))
def test_what_is_sent_is_what_was_written_but_for_the_middle(seed: int) -> None:
    draw = random.Random(seed)
    log = OutputLog()
    whole = b""
    pieces: list[LogPiece] = []
    for _ in range(draw.randint(1, 60)):
        data = "".join(draw.choices("aé€😀\n", k=draw.choice([1, 10, 5000]))).encode()
        cut = draw.randint(0, len(data))
        for part in (data[:cut], data[cut:]):
            log.feed("stdout", part)
        whole += data
        if draw.random() < 0.5:
            pieces += log.take()
    pieces += _drained(log)
    _check_order(pieces)
    for piece in pieces:
        data = piece.text.encode()
        assert whole[piece.start : piece.start + len(data)] == data
    kept = {n for piece in pieces for n in range(piece.start, piece.start + len(piece.text.encode()))}
    assert set(range(min(len(whole), HEAD_BYTES))) <= kept
    assert set(range(max(0, len(whole) - TAIL_BYTES), len(whole))) <= kept


def test_much_takes_little_memory_and_few_pieces() -> None:
    log = OutputLog()
    for _ in range(2000):
        log.feed("stdout", b"x" * 65_536)
        log.feed("stderr", b"\x00\xff" * 1000)
    pieces = _drained(log)
    assert len(pieces) <= 8
    assert sum(len(piece.text.encode()) for piece in pieces) <= 2 * (HEAD_BYTES + TAIL_BYTES) + 64
    assert max(piece.start + len(piece.text.encode()) for piece in pieces) == 2000 * 65_536


def test_bytes_that_are_no_text_become_text() -> None:
    log = OutputLog()
    log.feed("stderr", b"\xff\x00" + os.urandom(5000))
    for piece in _drained(log):
        assert "\x00" not in piece.text
        piece.text.encode()


def test_a_chatty_stream_keeps_the_other_waiting_for_no_call() -> None:
    log = OutputLog()
    for _ in range(5):
        log.feed("stdout", b"x" * 70_000)
        log.feed("stderr", b"an error")
        assert "an error" in [piece.text for piece in log.take() if piece.stream == "stderr"]
