"""Headers that browsers keep to, hosts of requests, and addresses that lead nowhere else."""

import re
from base64 import b64encode
from hashlib import sha256

import pytest

from app.http.refusals import RefusalPolicy, Refusals
from app.kernel.access import Role
from tests.http.test_slow_clients import _until_let_go
from tests.http.test_slow_clients import port as port
from tests.support.service import Service, registration
from tests.support.streams import Port


@pytest.mark.parametrize("path", ["/livez", "/goals", "/nowhere", "/docs", "/openapi.json", "/problems"])
async def test_every_answer_is_taken_as_it_is(service: Service, path: str) -> None:
    answer = await service.ask("GET", path)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


async def test_answers_with_keys_are_not_kept(service: Service) -> None:
    made = await service.ask("POST", "/keys", {"role": "reader", "label": "dashboard"})
    registered = await service.ask("POST", "/workers", registration(), key=Role.POOL)
    assert [made.status_code, registered.status_code] == [201, 201]
    assert [made.headers["cache-control"], registered.headers["cache-control"]] == ["no-store", "no-store"]


async def test_lean_answers_have_the_headers_too(service: Service) -> None:
    answer = await service.ask("POST", "/lease", {})
    assert answer.headers["x-content-type-options"] == "nosniff"


_HEADERS = {"x-content-type-options", "content-security-policy", "cache-control"}


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET / livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /li",
        b"GET /%ff HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["no host", "no request", "half a head", "no UTF-8"],
)
async def test_refusals_before_any_route_have_the_headers_too(port: Port, sent: bytes) -> None:
    answer = await _until_let_go(port, sent.replace(b"x\r\n", b"x\r\nConnection: close\r\n"))
    head = answer.split(b"\r\n\r\n")[0].decode().lower().split("\r\n")[1:]
    assert {line.partition(":")[0] for line in head} >= _HEADERS
    assert len(head) == len(set(head))


async def test_a_failure_too_many_has_the_headers_too(service: Service) -> None:
    service.app.state.services[Refusals].policy = RefusalPolicy(failures=1)
    answers = [await service.ask("GET", "/tasks", key="cvn_000000000000_guess") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [401, 429, 429]
    for answer in answers:
        assert set(answer.headers) >= _HEADERS
        assert len(answer.headers.get_list("cache-control")) == 1


async def test_a_page_runs_its_own_scripts_and_no_others(service: Service) -> None:
    answer = await service.ask("GET", "/docs")
    policy = answer.headers["content-security-policy"]
    assert "unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    scripts = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    assert scripts
    for script in scripts:
        assert b64encode(sha256(script.encode()).digest()).decode() in policy
    # Whatever else the page loads comes from here.
    assert all(url.startswith("/") for url in re.findall(r'(?:src|href)="([^"]+)"', answer.text))


@pytest.mark.parametrize("path", ["/tasks/", "/livez/", "/docs/", "/goals/x/pause/"])
async def test_no_address_leads_to_the_host_that_the_client_names(service: Service, path: str) -> None:
    answer = await service.client.get(path, headers={"Host": "evil.example"}, follow_redirects=False)
    assert answer.status_code in (401, 404, 405)
    assert "location" not in answer.headers


@pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: b\r\n", b"Host: a\r\nhost: a\r\n"])
@pytest.mark.parametrize("path", [b"GET /livez", b"POST /lease", b"GET /docs"])
async def test_a_request_names_one_host(port: Port, path: bytes, hosts: bytes) -> None:
    answer = await _until_let_go(port, path + b" HTTP/1.1\r\n" + hosts + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"malformed_request" in answer


async def test_older_clients_name_none(port: Port) -> None:
    assert (await _until_let_go(port, b"GET /livez HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
