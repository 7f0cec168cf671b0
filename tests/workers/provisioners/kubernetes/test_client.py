"""Calls of an API server over connections that break."""

import ssl
from pathlib import Path

import pytest

from app.workers.provisioners.engine import EngineUnavailable
from app.workers.provisioners.kubernetes import client
from app.workers.provisioners.kubernetes.access import ClusterAccess
from tests.support.tls import ALERT_IN_CLEAR, issue, listening


async def test_an_answer_whose_encryption_breaks_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_FIRST_PAUSE_SECONDS", 0.0)
    certificate = issue(tmp_path)
    trust = ssl.create_default_context(cafile=certificate.ca_file)
    with listening(certificate.context(), b"", beneath=ALERT_IN_CLEAR) as server:
        url = f"https://127.0.0.1:{server.port}"
        calls = client.ApiClient(ClusterAccess(server=url, namespace="lab", trust=trust, token=lambda: None))
        with pytest.raises(EngineUnavailable, match="does not answer"):
            await calls.get("/api")
        assert len(server.received) == 4
        with pytest.raises(EngineUnavailable, match="the watch broke"):
            await anext(calls.watch("/api", "a=b", "1"))
        await calls.close()
