"""A chain shows every change, and is the same wherever it is computed."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from app.admin.rules.audit import GENESIS, AuditEntry, Entry, Link, flaw, next_entry

_NOON = datetime(2026, 11, 24, 12, 0, 0, 5, tzinfo=UTC)
_DEED = AuditEntry(by="me", action="config.set", before={"b": 1, "a": "ü"}, after=[1.0, 1e22, None], reason="why")


def _chain(length: int) -> list[Entry]:
    entries, link = [], Link()
    for number in range(length):
        entry = next_entry(link, _NOON + timedelta(seconds=number), replace(_DEED, reason=str(number)))
        entries.append(entry)
        link = Link(seq=entry.seq, digest=entry.digest)
    return entries


def test_the_digest_is_as_documented() -> None:
    content = (
        '{"action":"config.set","after":[1.0,1e+22,null],"at":"2026-11-24T12:00:00.000005+00:00",'
        '"before":{"a":"\\u00fc","b":1},"by":"me","reason":"why","seq":1}'
    )
    entry = next_entry(Link(), _NOON, _DEED)
    assert (entry.seq, entry.digest) == (1, hashlib.sha256(GENESIS + content.encode()).digest())


def test_the_time_zone_of_a_reader_changes_nothing() -> None:
    entry = next_entry(Link(), _NOON, _DEED)
    elsewhere = replace(entry, at=_NOON.astimezone(timezone(timedelta(hours=9))))
    assert flaw(Link(), elsewhere) is None


@pytest.mark.parametrize(
    "change",
    [{"by": "you"}, {"action": "x"}, {"before": {"b": 2, "a": "ü"}}, {"after": [1, 1e22, None]}, {"reason": ""}],
)
def test_every_word_counts(change: dict[str, object]) -> None:
    one, two = _chain(2)
    link = Link(seq=1, digest=one.digest)
    assert flaw(link, two) is None
    assert flaw(link, replace(two, content=replace(two.content, **change))) is not None  # type: ignore[arg-type]
    assert flaw(link, replace(two, at=two.at + timedelta(microseconds=1))) is not None
    assert flaw(link, replace(two, digest=bytes(32))) is not None


def test_the_order_counts_and_so_does_each() -> None:
    one, two, three = _chain(3)
    assert flaw(Link(seq=1, digest=one.digest), three) == "entry 2 is missing"
    assert flaw(Link(), two) == "entry 1 is missing"
    assert flaw(Link(seq=2, digest=one.digest), three) is not None
    assert flaw(Link(seq=2, digest=two.digest), three) is None
