"""Examination of checkpoints: elsewhere, one at a time, with the same findings."""

import asyncio
import hashlib
import zlib

import pytest

from app.memory.errors import VerificationBusy
from app.memory.service.examination import examine_elsewhere, examine_packed


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"[" * 100_000])
async def test_another_process_finds_the_same(content: bytes) -> None:
    packed, digest = zlib.compress(content), hashlib.sha256(content).digest()
    assert await examine_elsewhere(packed, digest) == examine_packed(packed, digest)
    assert "SHA-256" in (await examine_elsewhere(packed, b"0" * 32))[0]
    assert "unpacked" in (await examine_elsewhere(b"nonsense", digest))[0]


async def test_one_at_a_time() -> None:
    packed = zlib.compress(b"{}")
    results = await asyncio.gather(*(examine_elsewhere(packed, b"0" * 32) for _ in range(6)), return_exceptions=True)
    assert [type(result) for result in results].count(VerificationBusy) == 5
    assert "SHA-256" in (await examine_elsewhere(packed, b"0" * 32))[0]
