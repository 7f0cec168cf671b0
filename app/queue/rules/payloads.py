"""Payloads as PostgreSQL stores them: JSONB orders keys anew, and writes numbers without exponents."""

import json
from typing import Any


class _Changed(Exception):
    """JSONB would give something back otherwise than it was written."""


def kept_text(payload: str) -> str | None:
    """The payload as it was written where JSONB would not give the same back, but for white space; else None.

    It is JSON that begins with its first value.
    """
    try:
        # Not `decode`, which looks for white space around it, for as long as a short payload takes.
        _DECODER.raw_decode(payload)
    except _Changed:
        return payload
    return None


def _check_keys(pairs: list[tuple[str, Any]]) -> None:
    # By length and then by bytes, and each key once.
    last = b""
    for place, (text, _) in enumerate(pairs):
        name = text.encode("utf-8", "surrogatepass")
        if len(name) < len(last) or (len(name) == len(last) and name <= last and place):
            raise _Changed
        last = name


def _check_float(text: str) -> None:
    if "e" in text or "E" in text or text.startswith("-0"):
        raise _Changed


def _check_int(text: str) -> None:
    if text == "-0":
        raise _Changed


_DECODER = json.JSONDecoder(object_pairs_hook=_check_keys, parse_float=_check_float, parse_int=_check_int)
