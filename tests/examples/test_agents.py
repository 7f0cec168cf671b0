"""The six agents, each on its own."""

import json
from typing import Any

import pytest

from examples.kepler.agents.meta_review import review
from examples.kepler.agents.reflection import dimension
from examples.kepler.data import VARIABLES
from examples.kepler.expressions import Tree, operator, paths, size, variables
from examples.kepler.expressions import part as part_of
from examples.kepler.handlers import HANDLERS
from tests.examples.fake_convener import InstantTask

NO_GUIDANCE: dict[str, Any] = {"operators": {}, "variables": {}, "exponent": None}
LAW: Tree = ["pow", "a", 1.5]
SAME_LAW: Tree = ["*", "a", ["sqrt", "a"]]


def do(agent_type: str, **payload: Any) -> dict[str, Any]:
    """The result as it comes out of the service: JSON without NaN."""
    done: dict[str, Any] = json.loads(json.dumps(HANDLERS[agent_type](InstantTask(payload)), allow_nan=False))
    return done


def used(tree: Tree) -> list[str]:
    nodes = [part_of(tree, path) for path in paths(tree)]
    return [operator(node) if isinstance(node, list) else str(node) for node in nodes]


def test_generation_proposes_what_the_seed_says() -> None:
    first = do("generation", seed="1/0", count=20, guidance=NO_GUIDANCE)
    assert first == do("generation", seed="1/0", count=20, guidance=NO_GUIDANCE)
    assert first != do("generation", seed="1/1", count=20, guidance=NO_GUIDANCE)
    assert len(first["formulas"]) == 20
    assert all(variables(entry["tree"]) and size(entry["tree"]) <= 15 for entry in first["formulas"])


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 20), (0.5, 10), (0.01, 1)])
def test_batches_are_smaller_while_resources_are_short(factor: float, expected: int) -> None:
    payload = {"seed": "1/0", "count": 20, "guidance": NO_GUIDANCE, "parents": [{"id": "1", "tree": LAW}]}
    for agent in ("generation", "evolution"):
        assert len(HANDLERS[agent](InstantTask(payload, factor))["formulas"]) == expected


def test_generation_follows_guidance() -> None:
    guidance = {"operators": {"exp": 50.0}, "variables": {"m": 50.0}, "exponent": None}
    plain, guided = (do("generation", seed="1/0", count=40, guidance=g) for g in (NO_GUIDANCE, guidance))
    plain_words, guided_words = ([w for f in each["formulas"] for w in used(f["tree"])] for each in (plain, guided))
    assert guided_words.count("exp") > 2 * plain_words.count("exp")
    assert guided_words.count("m") > guided_words.count("a") + guided_words.count("e")


def test_generation_does_not_know_the_law() -> None:
    proposals = do("generation", seed="1/0", count=200, guidance=NO_GUIDANCE)["formulas"]
    assert sum(entry["tree"] == LAW for entry in proposals) <= 2


def test_reflection_fits_criticises_and_discards() -> None:
    formulas = [
        {"tree": tree, "origin": "test"} for tree in (["*", "m", SAME_LAW], ["log", "e"], ["sqrt", ["log", "e"]])
    ]
    done = do("reflection", formulas=formulas, evaluations=8)
    assert [entry["place"] for entry in done["reviews"]] == [0, 1]
    assert [entry["formula"] for entry in done["discarded"]] == ["sqrt(log(e))"]
    critique = done["reviews"][0]["critique"]
    assert critique["worst"] in critique["remarks"][0]
    assert abs(critique["percent_off"][critique["worst"]]) > 50.0
    assert "ignores the distance from the Sun" in done["reviews"][1]["critique"]["remarks"]


def test_reflection_brings_the_law_to_its_plain_form() -> None:
    [reviewed] = do("reflection", formulas=[{"tree": ["*", 7.0, SAME_LAW], "origin": "test"}], evaluations=30)[
        "reviews"
    ]
    assert reviewed["critique"]["formula"].endswith("* a^1.500")
    assert reviewed["error"] < 0.001
    assert reviewed["score"] == pytest.approx(reviewed["error"] + 0.002 * reviewed["size"])


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (LAW, (1.5, 0.0)),
        (["/", "m", "a"], (-1.0, 1.0)),
        (["+", "a", "m"], None),
        (["exp", "a"], None),
        ("e", (0.0, 0.0)),
    ],
)
def test_dimensions(tree: Tree, expected: tuple[float, float] | None) -> None:
    assert dimension(tree) == expected


def contestant(tree: Tree) -> dict[str, Any]:
    return {"tree": tree, "scale": 1.0, "size": size(tree)}


def test_ranking_lets_the_better_prediction_win_and_simplicity_break_ties() -> None:
    contestants = {"law": contestant(LAW), "same": contestant(SAME_LAW), "square": contestant(["square", "a"])}
    pairs = [["law", "square"], ["square", "law"], ["law", "same"], ["law", "law"]]
    done = do("ranking", contestants=contestants, pairs=pairs)
    assert [outcome["points"] for outcome in done["outcomes"]] == [1.0, 0.0, 1.0, 0.5]
    assert done["held_out_errors"]["law"] < 0.001


def test_ranking_counts_an_undefined_prediction_as_lost() -> None:
    contestants = {"gap": contestant(["-", "a", 5.0]), "poor": contestant("m")}
    done = do("ranking", contestants=contestants, pairs=[["poor", "gap"]])
    assert done["outcomes"][0]["bodies"][0] >= 5
    assert done["held_out_errors"]["gap"] is None


def test_proximity_groups_what_predicts_the_same() -> None:
    trees: dict[str, Tree] = {"law": LAW, "same": SAME_LAW, "near": ["pow", "a", 1.5004], "other": ["square", "a"]}
    entries = [
        {"id": name, "tree": tree, "scale": 1.0, "score": size(tree), "age": age}
        for age, (name, tree) in enumerate(trees.items())
    ]
    assert do("proximity", hypotheses=entries)["groups"] == [{"keep": "law", "drop": ["near", "same"]}]


def test_proximity_tells_apart_what_only_the_data_cannot() -> None:
    gap: Tree = ["sqrt", ["-", "a", 1.0]]
    entries = [
        {"id": name, "tree": tree, "scale": 1.0, "score": 1.0, "age": 0}
        for name, tree in {"gap": gap, "whole": ["sqrt", ["+", "a", 1.0]]}.items()
    ]
    assert do("proximity", hypotheses=entries)["groups"] == []


def test_evolution_makes_valid_children_of_every_kind() -> None:
    parents = [{"id": "1", "tree": LAW}, {"id": "2", "tree": ["/", "a", ["exp", "e"]]}]
    children = do("evolution", seed="1/7", count=200, parents=parents, guidance=NO_GUIDANCE)["formulas"]
    kinds = {"crossover", "combination", "mutation", "exchange", "refinement", "reduction", "extension"}
    assert {child["origin"] for child in children} == kinds
    assert all(variables(child["tree"]) and size(child["tree"]) <= 15 for child in children)


def best(*trees: Tree) -> list[dict[str, Any]]:
    return [{"tree": tree, "scale": 1.0, "held_out_error": 0.01, "remarks": ["far off"]} for tree in trees]


def test_meta_review_sees_the_pattern_and_guides_towards_it() -> None:
    done = do("meta_review", best=best(LAW, SAME_LAW, ["*", "a", ["sqrt", ["+", "a", 0.01]]]))
    guidance = done["guidance"]
    assert guidance["exponent"]["centre"] == pytest.approx(1.5, abs=0.01)
    assert guidance["variables"]["a"] > 5 * guidance["variables"]["m"] > 0.0
    assert guidance["operators"]["sqrt"] > guidance["operators"]["exp"] > 0.0
    assert "does not depend on e and m" in done["summary"]
    assert done["findings"]["remarks"] == {"far off": 3}


def test_meta_review_survives_formulas_that_are_undefined_almost_everywhere() -> None:
    done = review(InstantTask({"best": best(["sqrt", ["-", "e", 5.0]])}))
    assert set(done["guidance"]["variables"]) == set(VARIABLES)
