"""Of the ends of keys that callers tell of, the earliest counts until its caller has another key, or is gone."""

from datetime import UTC, datetime, timedelta

from app.llm.rules.key_reports import KeyReport, earliest_report

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def after(
    known: KeyReport | None, caller: str, hours: float | None, *, minutes: float = 0, has_answered: bool = True
) -> KeyReport | None:
    end = None if hours is None else NOW + hours * HOUR
    return earliest_report(known, caller, end, NOW + timedelta(minutes=minutes), has_answered=has_answered)


def test_no_caller_hides_that_the_key_of_another_ends_sooner() -> None:
    first = after(None, "a", 5)
    assert first == KeyReport(expires_at=NOW + 5 * HOUR, caller="a", reported_at=NOW)
    assert after(first, "b", 900) == first
    assert after(first, "b", None) == first
    sooner = after(first, "b", 1)
    assert sooner is not None
    assert (sooner.caller, sooner.expires_at) == ("b", NOW + HOUR)


def test_it_is_over_when_the_caller_has_another_key() -> None:
    first = after(None, "a", -1)
    assert after(first, "a", None, has_answered=False) == first
    assert after(first, "a", None) is None
    renewed = after(first, "a", 900)
    assert renewed is not None
    assert renewed.expires_at == NOW + 900 * HOUR


def test_who_calls_no_more_gives_way() -> None:
    first = after(None, "a", 5)
    assert after(first, "b", None, minutes=59) == first
    assert after(first, "b", None, minutes=61) is None
    # Set back, the clock of the database says that it was in a time to come.
    assert after(first, "b", None, minutes=-180) is None
