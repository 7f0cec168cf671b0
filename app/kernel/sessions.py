"""Ends of sessions of the database that keep something from others."""

# The condition of a row `a` of pg_stat_activity, as far as this role may see it.
AWAITS_STANDBY = "coalesce(a.wait_event = 'SyncRep', false)"


def session_end(pid: int, *, awaits_standby: bool) -> str:
    """Return how people end the transaction of a session, which they should not while it waits for a standby.

    The server would show what it has stored and no standby has, and repeated calls would be acknowledged by that.
    """
    if awaits_standby:
        return (
            f"process {pid} waits for a synchronous standby, as whatever commits does: start a standby, or set "
            "synchronous_standby_names to '' on the primary; do not end it, which would show what no standby has"
        )
    return f"end its transaction, or in the database: SELECT pg_terminate_backend({pid})"
