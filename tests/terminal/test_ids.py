"""Ids by their first digits: the one that has them is meant, several are refused by name, and whole ids ask nobody."""

from uuid import UUID, uuid4

import pytest
import typer

from app.terminal.ids import id_or_prefix
from tests.support.command_line import CommandLine, Service

_ID = "0190a5b2-0000-7000-8000-000000000001"


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (_ID, _ID),
        (_ID.upper().replace("-", ""), _ID),
        ("0190", "0190"),
        ("0190A5B2-00", "0190a5b200"),
        (_ID[:-1], _ID[:-1].replace("-", "")),
    ],
)
def test_whole_ids_and_beginnings_are_told_apart(text: str, meaning: str) -> None:
    assert id_or_prefix(text) == meaning


@pytest.mark.parametrize("text", ["", "019", "kepler", "0190a5bg", _ID + "0", "../keys", "%%%%"])
def test_what_is_neither_is_wrong_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="neither an id nor"):
        id_or_prefix(text)


async def _submitted(convener: CommandLine, task_id: str) -> None:
    done = await convener("tasks", "submit", "--agent", "meta_review", "--id", task_id)
    assert done.code == 0, done.err


async def test_a_task_is_meant_wherever_an_id_is_taken(convener: CommandLine) -> None:
    task_id = str(uuid4())
    prefix = task_id[:13]
    await _submitted(convener, task_id)
    for words in (("tasks", "get"), ("why",), ("tasks", "change", "--priority", "high"), ("tasks", "cancel")):
        done = await convener(*words, prefix, "-o", "json")
        assert (done.code, task_id in done.out) == (0, True), done
    # In history it is meant as well.
    assert (await convener("tasks", "get", prefix, "-o", "json")).json["state"] == "cancelled"
    assert (await convener("tasks", "logs", prefix)).code == 0


async def test_several_are_refused_with_their_names(convener: CommandLine) -> None:
    first, second = (str(UUID(f"{uuid4().hex[:8]}{'0' * 24}")) for _ in range(2))
    second = first[:-1] + "1"
    for task_id in (first, second):
        await _submitted(convener, task_id)
    refused = await convener("tasks", "cancel", first[:8], first)
    assert (refused.code, first in refused.err, second in refused.err) == (2, True, True)
    assert (await convener("tasks", "get", first, "-o", "json")).json["state"] == "pending"
    assert (await convener("tasks", "get", "ffffffff0000")).code == 5


async def test_workers_are_meant_by_name_first_and_then_by_the_beginning_of_an_id(
    convener: CommandLine, live_service: Service
) -> None:
    worker = await live_service.register(f"w-{uuid4().hex[:8]}")
    worker_id = worker["worker_id"]
    named = await live_service.register(worker_id.replace("-", "")[:20])
    shown = (await convener("workers", "get", worker_id[:18], "-o", "json")).json
    assert shown["worker_id"] == worker_id
    shown = (await convener("workers", "get", worker_id.replace("-", "")[:20], "-o", "json")).json
    assert shown["worker_id"] == named["worker_id"]
    assert (await convener("tasks", "ls", "--worker", worker_id[:18], "-o", "json")).json["items"] == []
    assert (await convener("workers", "drain", worker_id[:18])).code == 0
    for wrong in ("nobody", "ffffffffffff"):
        assert (await convener("workers", "get", wrong)).code == 5
