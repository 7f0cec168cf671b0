"""Keys, roles and scopes."""

import hmac
from typing import Any

import pytest

from app.admin.rules.keys import digest, key_problems, matches, read_key, write_key
from app.kernel.access import SCOPES, Principal, Role, Scope


def test_a_key_is_read_as_it_is_written_also_with_underscores_in_its_secret() -> None:
    assert read_key(write_key("ab12", "x_y-_z")) == ("ab12", "x_y-_z")


@pytest.mark.parametrize("text", ["", "cvn", "cvn_", "cvn_a", "cvn_a_", "cvn__s", "abc_a_s", "Bearer cvn_a_s"])
def test_anything_else_is_no_key(text: str) -> None:
    assert read_key(text) is None


def test_the_comparison_takes_the_same_time_for_every_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Any, Any]] = []

    def compare(first: bytes, second: bytes) -> bool:
        compared.append((first, second))
        return first == second

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert matches("secret", digest("secret"))
    assert not matches("Secret", digest("secret"))
    assert len(compared) == 2


def test_each_role_may_do_what_it_is_for_and_no_more() -> None:
    assert SCOPES[Role.WORKER] == {Scope.PUBLIC, Scope.SELF, Scope.LEASE, Scope.CALL, Scope.MEASURE}
    assert SCOPES[Role.POOL] == {Scope.PUBLIC, Scope.SELF, Scope.REGISTER}
    assert SCOPES[Role.MONITOR] == {Scope.PUBLIC, Scope.SELF, Scope.MONITOR}
    assert SCOPES[Role.READER] == SCOPES[Role.MONITOR] | {Scope.READ, Scope.CONTENT}
    assert SCOPES[Role.SUPERVISOR] == SCOPES[Role.READER] | {
        *(Scope.SUBMIT, Scope.MANAGE, Scope.WEIGH, Scope.CALL, Scope.MEASURE)
    }
    assert SCOPES[Role.OPERATOR] == SCOPES[Role.SUPERVISOR] | {Scope.OPERATE, Scope.CONFIGURE}
    assert SCOPES[Role.ADMIN] == SCOPES[Role.OPERATOR] | {Scope.KEYS}
    assert [role for role in Role if Principal(key_id="k", role=role).may(Scope.LEASE)] == [Role.WORKER]
    assert [role for role in Role if Principal(key_id="k", role=role).may(Scope.REGISTER)] == [Role.POOL]


def test_a_key_lacks_what_was_withheld() -> None:
    principal = Principal(key_id="k", role=Role.READER, withheld=frozenset({Scope.CONTENT}))
    assert (principal.may(Scope.READ), principal.may(Scope.CONTENT)) == (True, False)


@pytest.mark.parametrize(
    ("role", "withheld", "fields"),
    [
        (Role.READER, {Scope.CONTENT}, []),
        (Role.WORKER, set(), ["role"]),
        (Role.READER, {Scope.SUBMIT}, ["withheld"]),
        (Role.MONITOR, {Scope.MONITOR}, ["withheld"]),
        (Role.READER, {Scope.PUBLIC}, ["withheld"]),
    ],
)
def test_no_key_is_made_without_use_or_for_a_worker(role: Role, withheld: set[Scope], fields: list[str]) -> None:
    assert [field for field, _ in key_problems(role, frozenset(withheld))] == fields
