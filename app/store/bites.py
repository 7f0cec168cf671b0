"""Deleting old rows a bite at a time, so that no lock is held and no snapshot kept for long."""

from sqlalchemy import TextClause, text

# Deleted in some 20 ms: no transaction that readers of events, or writers of these rows, would have to wait for.
BITE = 2000


def deletion(table: str, old: str, first: str) -> TextClause:
    """A statement that deletes at most `:bite` rows of a table for which `old` holds, in the order of `first`.

    What somebody else has locked is left for the next time, so this waits for nobody. Who deletes until a bite is not
    full has deleted everything else.
    """
    return text(f"""
DELETE FROM {table} WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM {table} WHERE {old} ORDER BY {first} LIMIT :bite FOR UPDATE SKIP LOCKED
))
""")
