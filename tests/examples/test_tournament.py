"""Elo ratings and the tournament that uses them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.kepler.tournament import Tournament
from examples.supervising.elo import START, after, expected

ratings = st.floats(0.0, 3000.0)


@given(ratings, ratings, st.sampled_from([0.0, 0.5, 1.0]))
def test_a_match_moves_points_but_makes_none(rating: float, other: float, points: float) -> None:
    assert sum(after(rating, other, points)) == pytest.approx(rating + other)
    assert expected(rating, other) + expected(other, rating) == pytest.approx(1.0)


@given(ratings, ratings)
def test_a_win_helps_and_a_draw_helps_the_weaker(rating: float, other: float) -> None:
    assert after(rating, other, 1.0)[0] >= rating >= after(rating, other, 0.0)[0]
    if rating < other:
        assert after(rating, other, 0.5)[0] >= rating


def test_equals_exchange_half_of_k() -> None:
    assert after(1200.0, 1200.0, 1.0) == (1216.0, 1184.0)
    assert expected(1400.0, 1000.0) == pytest.approx(10.0 / 11.0)


def reviewed(name: str, score: float) -> tuple[str, dict[str, Any]]:
    return name, {"tree": "a", "scale": 1.0, "size": 1, "score": score, "critique": {"remarks": ["far off"]}}


def win(first: str, second: str) -> dict[str, Any]:
    return {"first": first, "second": second, "points": 1.0}


def test_only_the_best_newcomers_stay_to_play() -> None:
    tournament = Tournament(intake=2)
    tournament.admit(reviewed(f"h{i}", float(i)) for i in range(9))
    assert {key for pair in tournament.pairs() for key in pair} == {"h0", "h1"}


def test_newcomers_meet_the_strong() -> None:
    tournament = Tournament(challengers=2)
    tournament.admit(reviewed(name, 1.0) for name in "abc")
    tournament.record([win("a", "b"), win("b", "c"), win("a", "c")])
    tournament.admit([reviewed("new", 0.5)])
    assert tournament.pairs() == [("a", "b"), ("new", "a"), ("new", "b")]


def test_ratings_sum_to_the_start_however_many_matches() -> None:
    tournament = Tournament()
    tournament.admit(reviewed(name, 1.0) for name in "abcd")
    tournament.record(win(first, second) for first, second in ("ab", "ca", "da", "cb", "ab") for _ in range(7))
    assert sum(entry.elo for entry in tournament.ranked()) == pytest.approx(4 * START)
    assert tournament.played == 35


def test_who_stays_of_a_group_takes_over_the_rating_that_was_earned() -> None:
    tournament = Tournament()
    tournament.admit([reviewed("old", 2.0), reviewed("weak", 3.0)])
    tournament.record([win("old", "weak")] * 3)
    earned = tournament["old"].elo
    tournament.admit([reviewed("simpler", 1.0)])
    tournament.merge([{"keep": "simpler", "drop": ["old"]}])
    assert tournament["simpler"].elo == earned
    assert tournament["simpler"].matches == 3
    assert tournament.dropped == 1
    assert tournament.leader == tournament["simpler"]


def test_a_rating_counts_only_after_three_matches() -> None:
    tournament = Tournament()
    tournament.admit(reviewed(name, 1.0) for name in "abc")
    tournament.record([win("a", "b")] * 3 + [win("c", "a")] * 2)
    assert tournament["c"].elo > tournament["b"].elo
    assert [entry.id for entry in tournament.ranked()] == ["a", "b", "c"]


def test_a_full_tournament_lets_the_weakest_go() -> None:
    tournament = Tournament(capacity=2)
    tournament.admit(reviewed(name, 1.0) for name in "abc")
    tournament.record([win("a", "b"), win("b", "c"), win("a", "c")] * 3)
    tournament.close_round()
    assert [entry.id for entry in tournament.ranked()] == ["a", "b"]


def test_parents_come_from_the_best_by_rating_and_by_score() -> None:
    tournament = Tournament()
    tournament.admit([reviewed("rated", 9.0), reviewed("middling", 8.0), reviewed("promising", 0.1)])
    tournament.record([win("rated", "middling")] * 3)
    assert [entry.id for entry in tournament.parents(2)] == ["rated", "promising"]
