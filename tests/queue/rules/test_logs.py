"""Positions of readers in the output of attempts."""

import pytest

from app.queue.rules.logs import MAX_POSITION, Position, Stream, parse_position, rest_of


def test_a_position_is_read_as_it_is_written() -> None:
    for position in (Position(), Position(floor=2, leases=((3, 10, 20), (5, 0, 1)))):
        assert parse_position(str(position)) == position
    largest = 10**18 - 1
    longest = str(Position(floor=largest, leases=((largest, largest, largest),) * 8))
    assert len(longest) == MAX_POSITION
    assert parse_position(longest) is not None
    for text in ("", "1.2-3", "1.2-3-x", "1.2-3-4-5", "-1", f"{10**19}", f"0{'.1-2-3' * 9}"):
        assert parse_position(text) is None


def test_offsets_of_several_leases_are_kept_and_the_oldest_are_over() -> None:
    position = Position().after(3, Stream.STDOUT, 10).after(3, Stream.STDERR, 30).after(5, Stream.STDOUT, 5)
    assert position == Position(leases=((3, 10, 30), (5, 5, 0)))
    # Late, from an earlier lease.
    position = position.after(2, Stream.STDOUT, 7).after(3, Stream.STDOUT, 11)
    assert position == Position(leases=((2, 7, 0), (3, 11, 30), (5, 5, 0)))
    for token in range(6, 12):
        position = position.after(token, Stream.STDERR, 1)
    assert (position.floor, len(position.leases), position.leases[0]) == (2, 8, (3, 11, 30))
    assert (position.offset(3, Stream.STDERR), position.offset(4, Stream.STDOUT)) == (30, 0)


@pytest.mark.parametrize(
    ("offset", "rest"), [(0, ("aéb", 5)), (5, ("aéb", 0)), (6, ("éb", 0)), (7, ("b", 0)), (8, ("b", 0)), (9, ("", 0))]
)
def test_the_rest_of_a_text_begins_at_a_character(offset: int, rest: tuple[str, int]) -> None:
    assert rest_of("aéb", 5, offset) == rest
