"""Identifiers made in the order of their creation, so that neighbors lie together in an index."""

import os
import time
from uuid import UUID

_RANDOM_BITS = ~(0xF << 76 | 0x3 << 62)
_VERSION_AND_VARIANT = 0x7 << 76 | 0x2 << 62


def time_ordered_bytes() -> bytes:
    """The bytes of a UUID version 7 (RFC 9562): 48 bits of milliseconds, then random bits."""
    value = (time.time_ns() // 1_000_000 << 80) | int.from_bytes(os.urandom(10), "big")
    return (value & _RANDOM_BITS | _VERSION_AND_VARIANT).to_bytes(16, "big")


def time_ordered_uuid() -> UUID:
    """A UUID version 7."""
    return UUID(bytes=time_ordered_bytes())
