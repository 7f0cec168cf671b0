"""Quality gained by more compute."""

import random
from datetime import UTC, datetime

import pytest

from app.agents.rules.performance import GainPolicy, Result, quality_gain

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def result(seconds: float | None, quality: float | None, *, is_success: bool = True) -> Result:
    return Result(at=NOW, seconds=seconds, quality=quality, is_success=is_success)


def growing(gain: float, noise: float = 0.0, count: int = 60) -> list[Result]:
    """Tasks of 1 to 64 s whose quality grows by `gain` with each doubling."""
    draw = random.Random(5)
    return [
        result(2.0 ** (n % 7), min(1.0, max(0.0, 0.4 + gain * (n % 7) + draw.gauss(0, noise)))) for n in range(count)
    ]


def test_the_slope_is_found_to_the_number() -> None:
    assert quality_gain(growing(0.05)) == pytest.approx(0.05)


def test_noise_makes_it_cautious() -> None:
    gain = quality_gain(growing(0.05, noise=0.1))
    assert gain is not None
    assert 0.01 < gain < 0.05


def test_what_does_not_grow_or_falls_gains_nothing() -> None:
    assert quality_gain(growing(0.0)) == pytest.approx(0.0)
    assert quality_gain(growing(-0.05)) == 0.0
    assert quality_gain(growing(0.0, noise=0.1)) == 0.0


def test_too_few_or_too_like_results_say_nothing() -> None:
    assert quality_gain([]) is None
    assert quality_gain(growing(0.05, count=GainPolicy().least_results - 1)) is None
    assert quality_gain([result(8.0 + n / 100, n / 100) for n in range(50)]) is None


def test_only_judged_successes_count() -> None:
    unjudged = [result(64.0, None), result(None, 0.9), result(64.0, 0.0, is_success=False)] * 20
    assert quality_gain(unjudged) is None
    assert quality_gain(growing(0.05) + unjudged) == pytest.approx(0.05)
