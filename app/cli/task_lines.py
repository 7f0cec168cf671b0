"""A line for each step of every task, for the terminal of `convener up` in development."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx

from app.cli.stack import Stack
from app.kernel.access import Role
from app.kernel.events import TaskEvent
from app.queue.cli.events import event_line
from app.terminal import output
from worker_agent.connections.clients import open_async_client

# Submits come in thousands, and an assignment is followed by the execution.
_SHOWN = [kind.value for kind in TaskEvent if kind not in (TaskEvent.SUBMITTED, TaskEvent.ASSIGNED)]
_WAIT_SECONDS = 20.0
_RETRY_SECONDS = 1.0


async def show_tasks(stack: Stack, show: Callable[[str], object]) -> None:
    """Show what happens to tasks from now on, until cancelled; an outage of the API is waited out."""
    headers, cursor = {"Authorization": f"Bearer {stack.keys[Role.OPERATOR]}"}, "now"
    async with open_async_client(stack.own_address, stack.trust, headers=headers, timeout=_WAIT_SECONDS + 10) as client:
        while True:
            query: dict[str, Any] = {"after": cursor, "limit": 500, "wait_seconds": _WAIT_SECONDS, "kind": _SHOWN}
            try:
                answer = await client.get("/events", params=query)
                page = answer.raise_for_status().json()
            except httpx.HTTPError:
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            for event in page["items"]:
                show(output.plain(event_line(event)))
            cursor = page["next"]
