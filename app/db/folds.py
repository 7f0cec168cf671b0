"""Folds: add events to sums batch by batch, so that none is left out and none is counted twice."""

# The oldest running transaction: no event with a lower number can appear any more. Sequence numbers alone would not do,
# because they become visible out of order: a reader would skip the event of a transaction that commits late.
HORIZON = "(pg_snapshot_xmin(pg_current_snapshot())::text)::bigint + convener_transaction_offset()"


def batch(name: str) -> str:
    """Return parts of a statement that select the next events of a fold: those from `mark.since` up to `batch.until`.

    `ahead` has the events of the batch, and one more where there are more. The caller holds a duty's turn: two folds of
    one name at once would count events twice.
    """
    # A batch of about `:limit` events ends between two transactions, as the mark knows only whole ones; the events of a
    # transaction that is larger are taken all at once.
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


def advance_mark(name: str, condition: str) -> str:
    """Return the part of a statement that advances the mark to the end of the batch, under a condition."""
    return f"""marked AS (
    INSERT INTO folds (name, transaction) SELECT '{name}', until FROM batch WHERE {condition}
    ON CONFLICT (name) DO UPDATE SET transaction = excluded.transaction
)"""
