"""The weight of JSON: an estimate of its cost to a parser, made from the text before it is parsed."""

import math
from collections.abc import Iterator
from itertools import accumulate

# JSON with short names weighs about as much as it has bytes; what weighs more is dear for its size, which is nothing as
# long as it is short.
_FREE_WEIGHT = 64_000
_MAX_WEIGHT = 1_000_000
# The time that a number takes grows with the square of its digits.
_LONG_NUMBER = b"0" * 400
_SAME_DIGIT = bytes.maketrans(b"123456789", b"0" * 9)
_BLOCK_BYTES = 128 << 10
TOO_HEAVY = "with more values than a result may have, or a number of over 400 digits"


def allowed_weight(size: int, max_weight: int) -> int:
    """The most weight that a text of so many bytes may have."""
    return min(max_weight, size + _FREE_WEIGHT)


def is_too_heavy(text: bytes, max_weight: int = _MAX_WEIGHT) -> bool:
    """Whether a text has too many values for its size, by default for the control plane, or one of over 400 digits."""
    allowed = allowed_weight(len(text), max_weight)
    return not (_is_within(weights(text), allowed) or _is_within(weights_outside_texts(text), allowed))


def weights(text: bytes) -> Iterator[float]:
    """The weight of each part of a text, as if there were no strings in it, which have commas and brackets too."""
    return map(_weight, (text[start : start + _BLOCK_BYTES] for start in range(0, len(text), _BLOCK_BYTES)))


def weights_outside_texts(text: bytes) -> Iterator[float]:
    """The weight of each part of JSON that is in no string."""
    return map(_weight, _outside_texts(text))


def _is_within(parts: Iterator[float], allowed: int) -> bool:
    return all(weight <= allowed for weight in accumulate(parts))


def _weight(part: bytes) -> float:
    """A key or a container weighs 4, as it takes about 200 ns and 250 bytes, other values 1; a long number anything."""
    if _LONG_NUMBER in part.translate(_SAME_DIGIT):
        return math.inf
    return 4 * (part.count(b"[") + part.count(b"{") + part.count(b":")) + part.count(b",")


def _outside_texts(text: bytes) -> Iterator[bytes]:
    is_inside, escape = False, b""
    for start in range(0, len(text), _BLOCK_BYTES):
        block = escape + text[start : start + _BLOCK_BYTES]
        block = block.replace(b"\\\\", b"").replace(b'\\"', b"")
        escape = b"\\" if block.endswith(b"\\") else b""
        parts = block.split(b'"')
        yield b"".join(parts[is_inside::2])
        is_inside ^= len(parts) % 2 == 0
