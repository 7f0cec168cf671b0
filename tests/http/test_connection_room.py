"""Room for connections: who loses theirs where there are more than files for them, and that the log tells of it."""

from dataclasses import dataclass, field

import pytest

from app.http.connection_room import ConnectionRoom


@dataclass
class _Transport:
    is_over: bool = False

    def is_closing(self) -> bool:
        return self.is_over

    def abort(self) -> None:
        self.is_over = True


@dataclass
class _Connection:
    began_at: float
    is_admitted: bool = True
    is_answered: bool = True
    transport: _Transport = field(default_factory=_Transport)


def _lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_connections_that_are_closed_for_want_of_room_are_told_of_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """250 workers of a relay that may open 256 files had each other's connections closed, and no line said so."""
    moment = 1000.0
    monkeypatch.setattr("app.http.connection_room.time.monotonic", lambda: moment)
    room = ConnectionRoom(2)
    connections = [_Connection(number) for number in range(200)]
    for count in range(3, 100):
        room.make(connections[:count])  # type: ignore[arg-type]  # as much of a transport as it asks for
    (line,) = _lines(caplog)
    assert line.startswith("all 2 connections are in use")
    assert "more files" in line
    moment += 61
    for count in range(100, 200):
        room.make(connections[:count])  # type: ignore[arg-type]
    assert len(_lines(caplog)) == 2


def test_strangers_make_room_for_strangers() -> None:
    room = ConnectionRoom(2)
    callers = [_Connection(0), _Connection(1)]
    strangers = [_Connection(number, is_admitted=False) for number in range(2, 50)]
    for count in range(1, len(strangers) + 1):
        room.make([*callers, *strangers[:count]])  # type: ignore[list-item]
    assert sum(stranger.transport.is_over for stranger in strangers) == len(strangers) // 2, "each makes room for two"
    assert not any(caller.transport.is_over for caller in callers)
