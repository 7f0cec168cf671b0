"""The contract on file is the contract that is served."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from app.cli.openapi import schema_text

FILE = Path(__file__).parents[2] / "openapi" / "openapi.json"


def test_the_file_is_up_to_date() -> None:
    assert FILE.exists(), "openapi/openapi.json is missing: run `make openapi`"
    assert json.loads(FILE.read_text()) == json.loads(schema_text()), (
        "openapi/openapi.json is stale: run `make openapi`"
    )
    assert FILE.read_text() == schema_text(), "openapi/openapi.json is stale: run `make openapi`"


def _described(operation: dict[str, Any], status: str) -> tuple[str, str]:
    """Media type and type of an answer."""
    [(media_type, content)] = operation["responses"][status]["content"].items()
    choices = content["schema"].get("anyOf", [content["schema"]])
    return media_type, " or ".join(choice["$ref"].rpartition("/")[2] for choice in choices)


def test_problems_are_described_as_they_are_answered() -> None:
    paths = json.loads(schema_text())["paths"]
    others = {}
    for path, operations in paths.items():
        for method, operation in operations.items():
            assert "default" in operation["responses"], path
            for status in operation["responses"]:
                found = None if status.startswith(("2", "3")) else _described(operation, status)
                if found and found != ("application/problem+json", "Problem"):
                    others[f"{method} {path} {status}"] = found
    assert others == {
        "post /llm/permits 429": ("application/problem+json", "RefusalOut or Problem"),
        "get /health/report 503": ("application/json", "HealthReportOut"),
    }


def test_every_type_has_a_name_of_its_own_and_is_used() -> None:
    text = schema_text()
    types = json.loads(text)["components"]["schemas"]
    ambiguous = [name for name in types if not re.fullmatch("[A-Z][A-Za-z]+", name)]
    assert not ambiguous, "two classes share a name, so that generated clients read badly"
    assert set(types) == set(re.findall(r'"#/components/schemas/([^"]+)"', text))


def test_the_export_is_the_same_in_every_process() -> None:
    command = [sys.executable, "-m", "app.cli", "openapi"]
    other = subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True
    )
    assert other.stdout == schema_text()
