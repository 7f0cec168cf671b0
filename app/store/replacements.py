"""How fast lost workers were replaced, over the newest of the records that are kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.store.bites import BITE, deletion

STEPS = ("requested", "started", "registered", "first_lease")

_PERCENTILES = ",\n       ".join(
    f"percentile_cont(CAST(:shares AS float8[])) WITHIN GROUP (ORDER BY extract(epoch FROM {step}_at - detected_at))"
    f" AS {step}"
    for step in STEPS
)

# Those before are another time, and many would take long to sort.
_TIMES = text(f"""
SELECT count(*) AS replacements, count(first_lease_at) AS working, min(detected_at) AS since,
       {_PERCENTILES}
FROM (SELECT * FROM replacements ORDER BY id DESC LIMIT :newest) latest
""")

_PRUNE = deletion("replacements", "detected_at < now() - make_interval(days => :days)", "id")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacementTimes:
    """Of the newest replacements: how many they are and how many work, and percentiles of each step.

    `steps` has, for each of STEPS, the seconds since the loss was detected at each of the shares; None where no
    replacement came so far.
    """

    replacements: int
    working: int
    since: datetime | None
    steps: Mapping[str, Sequence[float] | None]


async def times(connection: AsyncConnection, shares: Sequence[float], *, newest: int = 1000) -> ReplacementTimes:
    """How fast lost workers were replaced lately."""
    row = (await connection.execute(_TIMES, {"shares": list(shares), "newest": newest})).mappings().one()
    return ReplacementTimes(
        replacements=row["replacements"],
        working=row["working"],
        since=row["since"],
        steps={step: row[step] for step in STEPS},
    )


async def prune(connection: AsyncConnection, days: int, bite: int = BITE) -> int:
    """Forget replacements of long ago; returns how many."""
    return (await connection.execute(_PRUNE, {"days": days, "bite": bite})).rowcount
