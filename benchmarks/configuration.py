"""Changes of the configuration of a testbed."""

import json
from typing import Any

import httpx

from benchmarks.testbed import Testbed


async def change(testbed: Testbed, patch: dict[str, Any]) -> None:
    """Apply a merge patch to the configuration."""
    key = {"Authorization": f"Bearer {testbed.key}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{testbed.port}", headers=key, timeout=30) as client:
        tag = (await client.get("/config")).headers["etag"]
        headers = {"If-Match": tag, "content-type": "application/merge-patch+json"}
        (await client.patch("/config", content=json.dumps(patch), headers=headers)).raise_for_status()
