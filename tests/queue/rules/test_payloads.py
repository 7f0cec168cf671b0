"""Which payloads JSONB would give back otherwise."""

import pytest

from app.queue.rules.payloads import kept_text


@pytest.mark.parametrize(
    "payload",
    [
        '{"b": 1, "a": 2}',
        '{"aa": 1, "b": 2}',
        '{"n": 1e300}',
        '{"n": 1E5}',
        '{"n": -0.0}',
        '{"n": [-0]}',
        '{"a": 1, "a": 2}',
        '{"a": [{"c": 1, "b": 2}]}',
        '{"ü": 1, "zz": 1, "yy": 2}',
    ],
)
def test_what_would_come_back_otherwise_is_kept(payload: str) -> None:
    assert kept_text(payload) == payload


@pytest.mark.parametrize(
    "payload",
    [
        "{}",
        '{"a": 1, "b": 2, "aa": 3}',
        '{ "n" : 0.5 }',
        '{"n": 12345678901234567890123}',
        '{"n": 1.50, "z": null}',
        '{"": {}, "a": []}',
    ],
)
def test_what_comes_back_the_same_is_stored_once(payload: str) -> None:
    assert kept_text(payload) is None
