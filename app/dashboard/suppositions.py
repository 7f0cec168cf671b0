"""The decisions of the last hour under another configuration, as a chart beside what was decided."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from app.dashboard.api_calls import Api, Refused
from app.dashboard.charts import Chart, Series, chart

_HOUR = timedelta(hours=1)
# As many decisions as are made again: each takes milliseconds.
_SAMPLES = 24


async def hour_chart(api: Api, patch: Mapping[str, Any]) -> Chart | None:
    """Targets of decisions of the last hour, at equal distances, as they were and under a change; None before two.

    Each is made again from its own inputs, so the pool is what it was then, not what the change would have made of it.
    """
    newest = (await api.get("/scaling/decisions", limit=1))["items"]
    if not newest:
        return None
    last, end = int(newest[0]["id"]), datetime.fromisoformat(newest[0]["timestamp"])
    first = await _first_after(api, end - _HOUR, last)
    sample_ids = {last - round(number * (last - first) / _SAMPLES) for number in range(_SAMPLES + 1)}
    decided, supposed = [], []
    for decision_id in sorted(sample_ids):
        try:
            outcome = (
                await api.ask("POST", "/scaling/what-if", body={"decision_id": decision_id, "config": patch})
            ).value
        except Refused:
            continue  # it has been pruned meanwhile, or kept too little
        ago = (datetime.fromisoformat(outcome["decided"]["timestamp"]) - end).total_seconds() / 60
        decided.append((ago, float(outcome["decided"]["target_workers"])))
        supposed.append((ago, float(outcome["supposed"]["target_workers"])))
    series = [
        Series(name="as decided", style="c1", points=decided, is_stepped=True),
        Series(name="under the change", style="c2", points=supposed, is_stepped=True),
    ]
    changed = sum(one != other for one, other in zip(decided, supposed, strict=True))
    label = f"workers wanted over the last hour: {changed} of {len(decided)} decisions come out otherwise"
    return chart(series, across="minutes ago", upright="workers wanted", label=label)


async def _first_after(api: Api, since: datetime, last: int) -> int:
    """About the id of the first decision after a time, by halving: ids rise with time."""
    low, high = 0, last
    while high - low > 1:
        middle = (low + high) // 2
        items = (await api.get("/scaling/decisions", after=middle + 1, limit=1))["items"]
        if items and datetime.fromisoformat(items[0]["timestamp"]) >= since:
            high = middle
        else:
            low = middle
    return high
