"""Symptoms made from graded figures."""

from collections.abc import Iterator, Mapping

from app.health.rules.finding import AlertKey, Level, Symptom
from app.health.rules.snapshot import Grade


def symptom_of(
    grade: Grade,
    key: AlertKey,
    *,
    code: str | None = None,
    message: str,
    advice: str,
    facts: Mapping[str, float] | None = None,
) -> Iterator[Symptom]:
    """The symptom of a figure that is not well; its code is that of the report."""
    if grade is not Grade.WELL:
        yield Symptom(
            code=code or key.rule.value,
            level=level_of(grade),
            message=message,
            key=key,
            advice=advice,
            facts=facts or {},
            is_fading=grade is Grade.FADING,
        )


def level_of(grade: Grade) -> Level:
    """The level of a finding of this grade."""
    return Level.CRITICAL if grade is Grade.CRITICAL else Level.DEGRADED
