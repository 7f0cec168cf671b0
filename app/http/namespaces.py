"""The namespace of a request: that of the caller's key, or the one that a key of the whole service names."""

from typing import Annotated

from fastapi import Depends, Query
from pydantic import Field

from app.http.guard import Caller, mark_namespaced
from app.kernel.access import Principal
from app.kernel.errors import Forbidden
from app.kernel.namespaces import DEFAULT, PATTERN

NamespaceName = Annotated[
    str | None,
    Field(pattern=PATTERN, max_length=63, description="for keys of the whole service; all others have their own"),
]


# By another name than in the query, because the context has namespaces of its own in its paths.
async def _within(caller: Caller, space: Annotated[NamespaceName, Query(alias="namespace")] = None) -> str | None:
    return within(caller, space)


def within(caller: Principal, space: str | None = None) -> str | None:
    """The namespace that the caller may see and change, `space` where its key leaves the choice; None: all.

    Raises Forbidden.
    """
    if caller.namespace is None:
        return space
    if space not in (None, caller.namespace):
        raise Forbidden(f"the key belongs to the namespace {caller.namespace}, not to {space}")
    return caller.namespace if caller.is_confined else None


mark_namespaced(_within)
# The namespace that a request may see and change; None: all.
Within = Annotated[str | None, Depends(_within)]


async def _into(within: Within) -> str:
    return into(within)


def into(within: str | None) -> str:
    """The namespace of what is created within this one."""
    return within or DEFAULT


# The namespace of what a request creates, and of what it calls by a name.
Into = Annotated[str, Depends(_into)]
