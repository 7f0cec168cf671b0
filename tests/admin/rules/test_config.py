"""What holds between the values of a configuration, what modes preset, and what becomes of weights."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from app.admin.rules.config import (
    Document,
    NamespaceConfig,
    WeightsConfig,
    apply_merge_patch,
    as_json,
    balance_weights,
    conduct,
    effective_weights,
    from_json,
    preset,
    problems,
    step_problems,
    with_mode,
)
from app.kernel.agents import AgentType
from app.kernel.changes import Change, changes
from app.kernel.modes import Mode
from app.scaling.rules.target import scaling_policy

_NOBODY = dict.fromkeys(asdict(WeightsConfig()), 0.0)


def _with_pool(mode: Mode = Mode.PRODUCTION, **fields: Any) -> Document:
    document = preset(mode)
    return replace(document, worker_pool=replace(document.worker_pool, **fields))


def _weighed(**weights: float) -> Document:
    return replace(preset(Mode.PRODUCTION), agent_weights=WeightsConfig(**{**_NOBODY, **weights}))


@pytest.mark.parametrize("mode", list(Mode))
def test_presets_are_free_of_problems_and_survive_json(mode: Mode) -> None:
    document = preset(mode)
    assert problems(document, mode) == []
    assert balance_weights(document) is document
    assert from_json(as_json(document)) == document


def test_what_a_newer_version_has_added_is_no_obstacle() -> None:
    """Its programs and those of the last release run side by side for as long as an upgrade takes."""
    document = replace(preset(Mode.PRODUCTION), namespaces={"lab-a": NamespaceConfig(weight=2.0)})
    stored = as_json(document)
    objects = [stored, *(value for value in stored.values()), *stored["namespaces"].values()]
    for fields in [*objects, stored["queue"]["quotas"], stored["queue"]["aging"]]:
        if fields is not stored["namespaces"]:
            fields["novel"] = 1
    assert from_json(stored) == document


def test_the_modes_are_those_of_the_specification() -> None:
    pools = {mode: preset(mode).worker_pool for mode in Mode}
    assert {mode: (pool.min_workers, pool.max_workers) for mode, pool in pools.items()} == {
        Mode.DEVELOPMENT: (2, 5),
        Mode.PRODUCTION: (10, 1000),
        Mode.TRUSTED_TESTER: (5, 50),
    }
    tester = conduct(Mode.TRUSTED_TESTER)
    assert (tester.growth, tester.scale_down_window_seconds, tester.audits_reads) == (1.25, 300, True)
    assert [conduct(mode).scales for mode in Mode] == [False, True, True]
    assert not conduct(Mode.PRODUCTION).audits_reads
    fixed = scaling_policy(preset(Mode.DEVELOPMENT), Mode.DEVELOPMENT)
    assert (fixed.is_fixed, fixed.min_workers, fixed.max_workers) == (True, 2, 5)


@pytest.mark.parametrize(
    ("document", "paths"),
    [
        (_with_pool(min_workers=20, max_workers=19), ["worker_pool.min_workers"]),
        (_with_pool(min_workers=19, max_workers=19), []),
        (_with_pool(scale_down_threshold=0.8, scale_up_threshold=0.8), ["worker_pool.scale_down_threshold"]),
        (_with_pool(scale_down_threshold=0.0, scale_up_threshold=0.001), []),
        (_weighed(), ["agent_weights"]),
        (_weighed(ranking_agent=5e-324), []),
        (
            replace(_with_pool(min_workers=2, max_workers=1), agent_weights=WeightsConfig(**_NOBODY)),
            ["worker_pool.min_workers", "agent_weights"],
        ),
    ],
)
def test_what_cannot_be_together(document: Document, paths: list[str]) -> None:
    assert [problem.path for problem in problems(document, Mode.PRODUCTION)] == paths


def test_the_pool_of_trusted_testers_stays_moderate() -> None:
    for sizes, wrong in (((4, 50), ["min_workers"]), ((5, 51), ["max_workers"]), ((5, 50), []), ((7, 7), [])):
        document = _with_pool(Mode.TRUSTED_TESTER, min_workers=sizes[0], max_workers=sizes[1])
        found = [problem.path for problem in problems(document, Mode.TRUSTED_TESTER)]
        assert found == [f"worker_pool.{name}" for name in wrong]
        assert problems(document, Mode.PRODUCTION) == []


def test_a_switch_changes_the_pool_alone() -> None:
    mine = replace(preset(Mode.PRODUCTION), agent_weights=WeightsConfig(generation_agent=0.3, reflection_agent=0.1))
    there = with_mode(mine, Mode.TRUSTED_TESTER)
    assert there.worker_pool == preset(Mode.TRUSTED_TESTER).worker_pool
    assert replace(there, worker_pool=mine.worker_pool) == mine


def test_weights_are_scaled_to_one() -> None:
    weights = asdict(
        balance_weights(_weighed(generation_agent=1, ranking_agent=0.5, proximity_agent=0.5)).agent_weights
    )
    assert weights == {**_NOBODY, "generation_agent": 0.5, "ranking_agent": 0.25, "proximity_agent": 0.25}


@pytest.mark.parametrize(
    "values", [(5e-324, 0, 0, 0, 0, 0), (1e-300, 1, 0, 0, 0, 0), (0.1, 0.7, 0.3, 1 / 3, 1e-9, 1), (1, 1, 1, 1, 1, 1)]
)
def test_scaling_twice_is_scaling_once(values: tuple[float, ...]) -> None:
    once = balance_weights(_weighed(**dict(zip(_NOBODY, values, strict=True))))
    assert sum(asdict(once.agent_weights).values()) == pytest.approx(1, abs=1e-9)
    assert balance_weights(once) is once


def test_a_weight_that_is_named_gets_just_that_share() -> None:
    base = balance_weights(_weighed(generation_agent=0.5, ranking_agent=0.3, evolution_agent=0.2))
    named = replace(base, agent_weights=replace(base.agent_weights, generation_agent=0.75))
    weights = balance_weights(named, ["generation_agent"]).agent_weights
    assert weights.generation_agent == 0.75
    assert [weights.ranking_agent, weights.evolution_agent] == pytest.approx([0.15, 0.1])


def test_names_that_leave_nothing_for_the_others_are_scaled_like_all() -> None:
    alone = _weighed(generation_agent=0.5)
    assert balance_weights(alone, ["generation_agent"]).agent_weights.generation_agent == 1
    much = _weighed(generation_agent=1, ranking_agent=1, evolution_agent=0.5)
    weights = balance_weights(much, ["generation_agent", "ranking_agent"]).agent_weights
    assert [weights.generation_agent, weights.evolution_agent] == pytest.approx([0.4, 0.2])
    whole = _weighed(generation_agent=1, ranking_agent=0.5)
    assert balance_weights(whole, ["generation_agent"]).agent_weights.ranking_agent == 0


def test_no_agent_is_disabled_and_who_asks_for_it_is_told() -> None:
    weights, notes = effective_weights(_weighed(generation_agent=0.99, ranking_agent=0.01))
    assert sum(weights.values()) == pytest.approx(1)
    assert weights[AgentType.EVOLUTION] == weights[AgentType.RANKING] == 0.02
    assert {note.path for note in notes} == {
        f"agent_weights.{name}_agent" for name in ("reflection", "ranking", "evolution", "proximity", "meta_review")
    }
    assert all("0.02" in note.message for note in notes)
    assert effective_weights(preset(Mode.PRODUCTION))[1] == []


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        # The appendix of RFC 7396.
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patches(target: Any, patch: Any, result: Any) -> None:
    assert apply_merge_patch(target, patch) == result


def test_changes_are_flat() -> None:
    before = {"mode": "a", "pool": {"min": 1, "max": 2}, "gone": 1}
    after = {"mode": "b", "pool": {"min": 1, "max": 3}, "new": False}
    assert changes(before, after) == [
        Change(path="mode", before="a", after="b"),
        Change(path="pool.max", before=2, after=3),
        Change(path="gone", before=1, after=None),
        Change(path="new", before=None, after=False),
    ]
    assert changes(after, after) == []


def test_the_pool_of_development_stays_small() -> None:
    for sizes, wrong in (((2, 5), []), ((1, 5), ["min_workers"]), ((100, 1000), ["min_workers", "max_workers"])):
        document = _with_pool(Mode.DEVELOPMENT, min_workers=sizes[0], max_workers=sizes[1])
        paths = [remark.path for remark in problems(document, Mode.DEVELOPMENT)]
        assert paths == [f"worker_pool.{name}" for name in wrong]


def test_trusted_testers_raise_the_minimum_in_steps() -> None:
    former = _with_pool(Mode.TRUSTED_TESTER, min_workers=8, max_workers=50)
    for minimum, is_allowed in ((10, True), (11, False), (5, True)):
        document = replace(former, worker_pool=replace(former.worker_pool, min_workers=minimum))
        assert (step_problems(former, document, Mode.TRUSTED_TESTER) == []) == is_allowed
        assert step_problems(former, document, Mode.PRODUCTION) == []
