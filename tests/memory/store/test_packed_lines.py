"""Lines come back as they were, whatever their number and whatever is in them."""

import tracemalloc

import pytest

from app.memory.store.packed_lines import PackedLines


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
@pytest.mark.parametrize("length", [1, 1 << 10, 100 << 10])
def test_lines_come_back_in_their_order(count: int, length: int) -> None:
    lines = PackedLines()
    appended = [f'{{"n": {number}, "odd": "\u2028 \x85 \r ü 🪐"}}'.ljust(length) for number in range(count)]
    for line in appended:
        lines.append(line)
    assert len(lines) == count
    assert list(lines) == list(lines) == appended


def test_they_take_a_fraction_of_their_length() -> None:
    lines = PackedLines()
    tracemalloc.start()
    try:
        for number in range(2000):
            lines.append(f"{number} " + "orbits are ellipses " * 200)
        assert tracemalloc.get_traced_memory()[0] < sum(map(len, lines)) / 5
    finally:
        tracemalloc.stop()
