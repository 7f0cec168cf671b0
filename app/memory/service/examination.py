"""Examination of the content of a checkpoint, in a process of its own: to parse it holds an interpreter for seconds."""

import asyncio
import hashlib
import json
import sys
import threading
import zlib
from asyncio.subprocess import PIPE

from app.memory.errors import VerificationBusy
from app.memory.rules.checkpoints import find_violations

_DIGEST_BYTES = 32
_RETRY_SECONDS = 5
# One at a time: each takes a processor, and memory of several times the content.
_turn = threading.Semaphore(1)


def examine_content(content: bytes, sha256: bytes) -> list[str]:
    """A sentence for each violation in the content of a checkpoint whose checksum was `sha256` when it was taken."""
    if hashlib.sha256(content).digest() != sha256:
        return ["the content is not what was taken: its SHA-256 differs"]
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        return [f"the content is no JSON: {error}"]
    return find_violations(document) if isinstance(document, dict) else ["the content is no JSON object"]


def examine_packed(packed_content: bytes, sha256: bytes) -> list[str]:
    """The same for content that is still compressed."""
    try:
        content = zlib.decompress(packed_content)
    except zlib.error as error:
        return [f"the content cannot be unpacked: {error}"]
    return examine_content(content, sha256)


async def examine_elsewhere(packed_content: bytes, sha256: bytes) -> list[str]:
    """The same in another process. Raises VerificationBusy while there is one already."""
    if not _turn.acquire(blocking=False):
        raise VerificationBusy(retry_after_seconds=_RETRY_SECONDS)
    try:
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", __name__, stdin=PIPE, stdout=PIPE)
        try:
            answer, _ = await process.communicate(sha256 + packed_content)
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode != 0:
            raise RuntimeError(f"the examination of a checkpoint has ended with {process.returncode}")
        return [str(violation) for violation in json.loads(answer)]
    finally:
        _turn.release()


def main() -> None:
    """Read checksum and content from stdin, and write the violations to stdout as JSON."""
    text = sys.stdin.buffer.read()
    print(json.dumps(examine_packed(text[_DIGEST_BYTES:], text[:_DIGEST_BYTES])))


if __name__ == "__main__":
    main()
