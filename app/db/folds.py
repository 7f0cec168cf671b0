"""How events are folded into sums bit by bit, so that none is left behind and none is counted twice."""

# Below the oldest running transaction nothing can appear any more, so a cursor never skips a late commit.
HORIZON = "(pg_snapshot_xmin(pg_current_snapshot())::text)::bigint + convener_transaction_offset()"


def batch(name: str) -> str:
    """Parts of a statement: `mark` (from `since` on), `ahead` (what is to come) and `batch` (`until`, and `more`).

    Below the oldest running transaction no event can appear any more. A batch of about `:limit` events ends between two
    transactions, as the mark of this name does; one that is larger than a batch is taken whole. One fold of a name at a
    time: the caller holds a duty's turn.
    """
    return f"""mark AS MATERIALIZED (
    SELECT coalesce((SELECT transaction FROM folds WHERE name = '{name}'), 0) AS since, {HORIZON} AS until
), ahead AS MATERIALIZED (
    SELECT e.transaction FROM mark CROSS JOIN LATERAL (
        SELECT transaction FROM events WHERE transaction >= mark.since AND transaction < mark.until
        ORDER BY transaction, seq LIMIT :limit + 1
    ) e
), batch AS MATERIALIZED (
    SELECT CASE WHEN count(*) <= :limit THEN min(mark.until)
                WHEN min(transaction) = max(transaction) THEN max(transaction) + 1
                ELSE max(transaction) END AS until, count(*) > :limit AS more
    FROM mark LEFT JOIN ahead ON true
)"""


def marked(name: str, when: str) -> str:
    """The part that moves the mark on, under this condition."""
    return f"""marked AS (
    INSERT INTO folds (name, transaction) SELECT '{name}', until FROM batch WHERE {when}
    ON CONFLICT (name) DO UPDATE SET transaction = excluded.transaction
)"""
