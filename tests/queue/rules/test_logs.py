"""Positions of readers in the output of attempts."""

import pytest

from app.queue.rules.logs import Position, Stream, parse_position, rest_of


def test_a_position_is_read_as_it_is_written() -> None:
    position = Position(token=3, stdout=10, stderr=20)
    assert parse_position(str(position)) == position
    for text in ("", "1-2", "1-2-x", "1-2-3-4", "-1-2-3", f"{10**19}-0-0"):
        assert parse_position(text) is None


def test_another_lease_begins_anew() -> None:
    position = Position(token=3, stdout=10, stderr=20).after(3, Stream.STDERR, 30)
    assert position == Position(token=3, stdout=10, stderr=30)
    assert position.after(4, Stream.STDOUT, 5) == Position(token=4, stdout=5)


@pytest.mark.parametrize(
    ("offset", "rest"), [(0, ("aéb", 5)), (5, ("aéb", 0)), (6, ("éb", 0)), (7, ("b", 0)), (8, ("b", 0)), (9, ("", 0))]
)
def test_the_rest_of_a_text_begins_at_a_character(offset: int, rest: tuple[str, int]) -> None:
    assert rest_of("aéb", 5, offset) == rest
