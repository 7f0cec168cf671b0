"""Bodies that cost a parser or validator more than their size should, made for the fields of a route."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

_UUID = b'"c9f0f895-fb98-4b91-99f5-1fb0e2d1a2b3"'


def _filled(head: bytes, item: bytes, tail: bytes, size: int, separator: bytes = b",") -> bytes:
    """As many items as fit into a body of `size` bytes."""
    count = max(1, (size - len(head) - len(tail)) // (len(item) + len(separator)))
    return head + (item + separator) * (count - 1) + item + tail


def _numbered(head: bytes, item: str, tail: bytes, size: int) -> bytes:
    """Items that differ, each with its number in it."""
    count = max(1, (size - len(head) - len(tail)) // (len(item % (1 << 20)) + 1))
    return head + b",".join((item % number).encode() for number in range(1 << 16, (1 << 16) + count)) + tail


# A value that is repeated in a list until the body is full.
_ITEMS = {
    "lists": b"[]",
    "lists of one": b"[1]",
    "objects": b"{}",
    "objects of one": b'{"":1}',
    "nested lists": b"[" * 150 + b"]" * 150,
    "nested objects": b'{"":' * 150 + b"1" + b"}" * 150,
    "digits": b"1",
    "floats": b"1e9",
    "infinities": b"1e999",
    "not numbers": b"NaN",
    "long numbers": b"1" * 4200,
    "long floats": b"0." + b"1" * 4200,
    "texts": b'""',
    "escapes": b'"\\u0000"',
    "surrogates": b'"\\ud800"',
    "ids": _UUID,
    "agents": b'"generation"',
    "other names of agents": b'"generation_agent"',
    "truths": b"true",
    "nulls": b"null",
    "records": b'{"id":"h-12","score":1231.5,"wins":3,"losses":4}',
    "tasks": b'{"agent_type":"ranking"}',
    "wrong tasks": b'{"agent_type":1,"payload":1,"labels":1,"retry":1,"depends_on":1,"deadline":1,"x":1,"y":1}',
}
_TEXTS = {
    "text": b"x",
    "backslashes": b"\\\\",
    "newlines": b"\\n",
    "quotation marks": b'\\"',
    "accents": b"\\u00e9",
    "emoji": "\U0001f600".encode(),
    "escaped emoji": b"\\ud83d\\ude00",
    "commas": b",",
    "brackets": b"[",
    "escaped JSON": b'{\\"a\\":[1]},',
    "null characters": b"\\u0000",
    "digits in a text": b"1",
}


def hostile_bodies(size: int, fields: list[str], valid: dict[str, Any]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Names of bodies of up to `size` bytes, and what makes them; `valid` is a body that the route takes."""
    yield "spaces", partial(_filled, b"", b" ", b"{}", size, b"")
    yield "unknown keys", partial(_numbered, b"{", '"%x":1', b"}", size)
    yield "unknown keys with objects", partial(_numbered, b"{", '"%x":{}', b"}", size)
    yield "the same key", partial(_filled, b"{", b'"a":1', b"}", size)
    yield "open lists", partial(_filled, b"", b"[", b"", size, b"")
    yield "open objects", partial(_filled, b"", b'{"a":', b"", size, b"")
    for name, item in _ITEMS.items():
        yield f"a list of {name}", partial(_filled, b"[", item, b"]", size)
    for field in fields:
        others = json.dumps({key: value for key, value in valid.items() if key != field})[1:-1].encode()
        head = b"{" + others + (b"," if others else b"") + json.dumps(field).encode() + b":"
        for name, item in _ITEMS.items():
            yield f"{name} in {field}", partial(_filled, head + b"[", item, b"]}", size)
            yield f"{name} deeper in {field}", partial(_filled, head + b'{"a":[', item, b"]}}", size)
        for name, text in _TEXTS.items():
            yield f"{name} in {field}", partial(_filled, head + b'"', text, b'"}', size, b"")
            yield f"{name} deeper in {field}", partial(_filled, head + b'{"a":"', text, b'"}}', size, b"")
        yield f"keys in {field}", partial(_numbered, head + b"{", '"%x":1', b"}}", size)
        yield f"keys with texts in {field}", partial(_numbered, head + b"{", '"%x":"x"', b"}}", size)
        yield f"long keys in {field}", partial(_numbered, head + b"{", '"' + "k" * 199 + '%x":"v"', b"}}", size)
