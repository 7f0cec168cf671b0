"""Computations that take a while: one at a time in a thread, so that they keep neither requests nor others waiting."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# Whatever else wants the interpreter waits for each thread that computes.
_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="computing")


async def run(function: Callable[Arguments, Result], *args: Arguments.args, **options: Arguments.kwargs) -> Result:
    """The result of a function that waits for nothing; hold no connection meanwhile."""
    return await asyncio.get_running_loop().run_in_executor(_thread, partial(function, *args, **options))
