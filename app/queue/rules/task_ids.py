"""Ids of tasks that clients choose: nobody may choose one that another namespace derives from an idempotency key."""

from uuid import RFC_4122, UUID

from app.kernel.namespaces import DEFAULT

_PRIVATE_VERSION = 8
_RANDOM_VERSIONS = frozenset({4, 7})


def private_id(derived: UUID) -> UUID:
    """The derived id as one of the version that nobody may choose."""
    return UUID(int=derived.int & ~(0xF << 76) | _PRIVATE_VERSION << 76)


def chosen_id_problem(chosen: UUID, namespace: str) -> str | None:
    """Why nobody in the namespace may choose this id for a task; None when it may be chosen."""
    version = chosen.version if chosen.variant == RFC_4122 else None
    if namespace == DEFAULT:
        return "must not be a UUID of version 8: give an idempotency_key" if version == _PRIVATE_VERSION else None
    # Tasks of `default` derive theirs in version 5, from keys that others may guess.
    if version not in _RANDOM_VERSIONS:
        return "must be a random UUID, of version 4 or 7, outside of the namespace default; or give an idempotency_key"
    return None
