"""Which ids clients may choose for tasks."""

from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

import pytest

from app.db.uuids import time_ordered_uuid
from app.queue.rules.task_ids import chosen_id_problem, private_id

_DERIVED = uuid5(NAMESPACE_URL, "kepler/1")


def test_a_private_id_has_a_version_that_nobody_may_choose() -> None:
    private = private_id(_DERIVED)
    assert (private.version, private.variant) == (8, _DERIVED.variant)
    assert all(chosen_id_problem(private, namespace) is not None for namespace in ("default", "lab-a"))


@pytest.mark.parametrize("chosen", [uuid4(), time_ordered_uuid()], ids=["4", "7"])
def test_random_ids_may_be_chosen_everywhere(chosen: UUID) -> None:
    assert all(chosen_id_problem(chosen, namespace) is None for namespace in ("default", "lab-a"))


@pytest.mark.parametrize("chosen", [_DERIVED, UUID(int=1), UUID(int=0)], ids=["5", "one", "nil"])
def test_derived_ids_may_be_chosen_in_default_only(chosen: UUID) -> None:
    assert chosen_id_problem(chosen, "default") is None
    assert chosen_id_problem(chosen, "lab-a") is not None
