"""Blocks: their names, their sizes, and which come, stay and go."""

from dataclasses import replace

from app.workers.rules.blocks import (
    Block,
    BlockPolicy,
    blocks_to_give_up,
    blocks_to_remove,
    lead_seconds,
    make_token,
    member_names,
    name_block,
    nodes_to_ask_for,
    plan_blocks,
    read_name,
    rest_seconds,
)

POLICY = BlockPolicy(
    slots=2, min_nodes=2, max_nodes=5, walltime_seconds=3600, lead_seconds=300, drain_seconds=50, start_seconds=10
)
NOW = 1_795_900_000.0


def running(token: str, *, started: float = 1000, ends: float | None = 2600, nodes: int = 2) -> Block:
    """A block that started so many seconds ago, and ends in so many."""
    return Block(
        token=token,
        job_id=token,
        nodes=nodes,
        slots=2,
        submitted_at=NOW - started - 20,
        is_running=True,
        started_at=NOW - started,
        ends_at=None if ends is None else NOW + ends,
    )


def queued(token: str, nodes: int = 2) -> Block:
    """A block whose job waits."""
    return Block(token=token, job_id=token, nodes=nodes, slots=2, submitted_at=NOW - 5, is_running=False)


def test_the_name_of_a_job_tells_all_of_its_block() -> None:
    token = make_token(NOW, "0123abcd")
    name = name_block("lab-2", token, 12, 8)
    assert read_name(name, "lab-2") == (token, NOW, 12, 8)
    assert read_name(name, "lab") is None
    assert read_name("convener-lab-2-x", "lab-2") is None


def test_workers_are_named_by_block_node_and_slot() -> None:
    assert member_names("lab", queued("t")) == ["lab-t-0-0", "lab-t-0-1", "lab-t-1-0", "lab-t-1-1"]


def test_blocks_are_few_and_within_their_bounds() -> None:
    assert nodes_to_ask_for(4, POLICY) == [2]
    assert nodes_to_ask_for(24, POLICY) == [4, 4, 4]
    assert nodes_to_ask_for(22, POLICY) == [4, 4, 2]
    assert nodes_to_ask_for(24, replace(POLICY, max_nodes=6)) == [6, 6]
    # One worker more stands for one that leaves a place which stays.
    assert nodes_to_ask_for(1, POLICY) == []
    assert nodes_to_ask_for(-4, POLICY) == []


def test_when_any_block_has_ended_the_rest_can_be_asked_for_again() -> None:
    for ended in nodes_to_ask_for(24, POLICY):
        assert sum(nodes_to_ask_for(ended * POLICY.slots, POLICY)) == ended


def test_a_block_that_ends_soon_counts_no_longer_but_serves_on() -> None:
    old = running("a", ends=299)
    plan = plan_blocks([old], POLICY, 4, NOW)
    assert (plan.expiring, plan.leaving, plan.capacity) == ([old], [], 0)
    with_queued = plan_blocks([old, queued("b")], POLICY, 4, NOW)
    assert (with_queued.expiring, with_queued.capacity) == ([old], 4)


def test_a_block_leaves_once_its_replacement_has_had_time_to_start() -> None:
    old = running("a", ends=299)
    assert plan_blocks([old, running("b", started=5)], POLICY, 4, NOW).leaving == []
    assert plan_blocks([old, running("b", started=15)], POLICY, 4, NOW).leaving == [old]


def test_a_place_for_a_worker_that_left_meanwhile_keeps_no_block_that_is_replaced() -> None:
    old = running("a", ends=299)
    assert plan_blocks([old, running("b", started=15)], POLICY, 5, NOW).leaving == [old]


def test_of_two_blocks_only_as_many_leave_as_are_replaced() -> None:
    old, older = running("a", ends=299), running("b", ends=200)
    plan = plan_blocks([old, older, running("c", started=15), queued("d")], POLICY, 8, NOW)
    assert (plan.leaving, plan.expiring) == ([older], [old])


def test_without_a_replacement_workers_leave_shortly_before_the_end() -> None:
    old = running("a", ends=49)
    assert plan_blocks([old, queued("b")], POLICY, 4, NOW).leaving == [old]


def test_one_that_is_suspended_is_replaced_and_does_not_serve_meanwhile() -> None:
    stopped, old = replace(running("a"), is_suspended=True), running("b", ends=299)
    plan = plan_blocks([stopped], POLICY, 4, NOW)
    assert (plan.expiring, plan.capacity) == ([stopped], 0)
    assert plan_blocks([stopped, old, running("c", started=15)], POLICY, 8, NOW).leaving == [stopped]
    assert plan_blocks([stopped, running("c", started=15)], POLICY, 4, NOW).leaving == [stopped]


def test_one_that_is_ending_leaves_whatever_its_walltime_says() -> None:
    ending = replace(running("a", ends=None), is_ending=True)
    plan = plan_blocks([ending, queued("b")], POLICY, 4, NOW)
    assert (plan.leaving, plan.expiring, plan.capacity) == ([ending], [], 4)


def test_what_a_block_has_lost_of_its_nodes_is_replaced() -> None:
    assert [POLICY.lost_nodes(4, left) for left in (None, 5, 4, 3, 2, 1)] == [0, 0, 0, 2, 2, 4]
    damaged, useless = replace(running("a", nodes=4), lost_nodes=2), replace(running("b"), lost_nodes=2)
    plan = plan_blocks([damaged, useless], POLICY, 8, NOW)
    assert (plan.staying, plan.capacity, plan.expiring) == ([damaged], 4, [useless])
    assert len(member_names("lab", damaged)) == 8


def test_where_jobs_wait_for_long_replacements_are_asked_for_earlier() -> None:
    slow = replace(running("a"), submitted_at=NOW - 1000 - 800)
    assert lead_seconds([running("b")], POLICY) == 300
    assert lead_seconds([slow], POLICY) == 1200
    assert lead_seconds([replace(slow, submitted_at=NOW - 100_000)], POLICY) == 1800


def test_a_block_whose_end_nobody_knows_stays() -> None:
    assert plan_blocks([running("a", ends=None)], POLICY, 4, NOW).capacity == 4


def test_the_newest_queued_blocks_are_given_up_first() -> None:
    blocks = [queued("a"), queued("b", nodes=4), queued("c")]
    assert [block.token for block in blocks_to_give_up(blocks, 7)] == ["c"]
    assert [block.token for block in blocks_to_give_up(blocks, 8)] == ["c", "a"]


def test_only_whole_blocks_are_removed_and_expiring_ones_are_no_surplus() -> None:
    blocks = [running("a"), running("b"), running("c", ends=299)]
    plan = plan_blocks([*blocks, queued("d")], POLICY, 12, NOW)
    names = {block.token: member_names("lab", block) for block in blocks}
    assert blocks_to_remove("lab", plan, {*names["a"], *names["b"][:3]}, 8) == [blocks[0]]
    assert blocks_to_remove("lab", plan, {*names["a"], *names["b"], *names["c"]}, 12) == blocks[:2]
    assert blocks_to_remove("lab", plan, {*names["a"], *names["b"]}, 3) == []


def test_after_each_refusal_in_a_row_the_rest_is_longer_up_to_a_bound() -> None:
    assert [rest_seconds(refusals, POLICY) for refusals in (1, 2, 3, 5, 6, 100_000)] == [5, 10, 20, 80, 120, 120]
