"""Lines of text that are kept compressed: the rows of a checkpoint are tens of megabytes as text."""

import zlib
from collections.abc import Iterator

# The fastest level has most of the effect, because the rows of a table resemble each other.
LEVEL = 1
# About as much as compresses in a millisecond, for which the event loop stands still.
_PACK_CHARACTERS = 64 << 10


class PackedLines:
    """Lines in the order in which they were appended; none of them contains a line break."""

    def __init__(self) -> None:
        self._packs: list[bytes] = []
        self._loose: list[str] = []
        self._loose_characters = 0
        self._count = 0

    def append(self, line: str) -> None:
        """Add a line at the end."""
        self._count += 1
        self._loose.append(line)
        self._loose_characters += len(line)
        if self._loose_characters >= _PACK_CHARACTERS:
            self._packs.append(zlib.compress("\n".join(self._loose).encode(), LEVEL))
            self._loose.clear()
            self._loose_characters = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        for pack in self._packs:
            yield from zlib.decompress(pack).decode().split("\n")
        yield from self._loose
