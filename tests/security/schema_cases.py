"""Requests made from the OpenAPI document, right and wrong ones, sent to a running API and judged by the document."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

DOCUMENT = Path(__file__).parents[2] / "openapi" / "openapi.json"
_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
_ANSWER_SECONDS = 30
_ENDLESS = "/events/stream"


@dataclass(slots=True, kw_only=True)
class Campaign:
    """Sends cases with one key and keeps each kind of failure once, by operation and message."""

    url: str
    key: str | None
    # Values of path parameters that exist, by name: with random ones little behind them would be reached.
    existing: Mapping[str, list[str]]
    requests: int = 0
    failures: dict[str, str] = field(default_factory=dict)

    def run(self, cases: int, every: int = 1) -> None:
        """Send at least this many requests in rounds through every n-th operation; the same ones every time."""
        document = json.loads(DOCUMENT.read_text())
        del document["paths"][_ENDLESS]
        results = list(schemathesis.openapi.from_dict(document).get_all_operations())[::every]
        operations = [result.ok() for result in results if isinstance(result, Ok)]
        assert len(operations) == len(results)
        number = 0
        while self.requests < cases:
            each = max(1, -(-(cases - self.requests) // len(operations)))
            for operation in operations:
                self._try(operation, min(each, 50), number)
            number += 1

    def _try(self, operation: Any, examples: int, number: int) -> None:
        modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        strategy = st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes])
        chance = random.Random(f"{operation.label} {number}")

        @seed(number)
        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=strategy)
        def send(case: Any) -> None:
            self._send(case, chance)

        send()

    def _send(self, case: Any, chance: random.Random) -> None:
        for name, values in self.existing.items():
            if name in (case.path_parameters or {}) and values and chance.random() < 0.5:
                case.path_parameters[name] = chance.choice(values)
        # A long poll would be right, and take half a minute.
        if isinstance(case.query, dict) and "wait_seconds" in case.query and chance.random() < 0.9:
            case.query["wait_seconds"] = 0
        if isinstance(case.body, dict) and isinstance(case.body.get("wait_seconds"), int | float):
            case.body["wait_seconds"] = 0
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self.requests += 1
        try:
            response = case.call(base_url=self.url, headers=headers, timeout=_ANSWER_SECONDS)
            case.validate_response(response, checks=_CHECKS, headers=headers)
        except FailureGroup as group:
            for failure in group.exceptions:
                self._note(case, str(getattr(failure, "title", failure)), failure)
        except (Failure, requests.RequestException) as failure:
            self._note(case, type(failure).__name__, failure)

    def _note(self, case: Any, title: str, failure: Exception) -> None:
        kind = f"{case.operation.label}: {title}"
        self.failures.setdefault(kind, f"{failure}\n{case.as_curl_command()[:2000]}")
