"""The contract on file is the contract that is served."""

import json
import os
import subprocess
import sys
from pathlib import Path

from app.cli.openapi import schema_text

FILE = Path(__file__).parents[2] / "openapi" / "openapi.json"


def test_the_file_is_up_to_date() -> None:
    assert FILE.exists(), "openapi/openapi.json is missing: run `make openapi`"
    assert json.loads(FILE.read_text()) == json.loads(schema_text()), (
        "openapi/openapi.json is stale: run `make openapi`"
    )
    assert FILE.read_text() == schema_text(), "openapi/openapi.json is stale: run `make openapi`"


def test_problems_are_described_as_they_are_answered() -> None:
    schema = json.loads(schema_text())
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            failures = {
                status: told for status, told in operation["responses"].items() if not status.startswith(("2", "3"))
            }
            assert "default" in failures, path
            for told in failures.values():
                assert list(told["content"]) == ["application/problem+json"], (path, told)
                assert told["content"]["application/problem+json"]["schema"]["$ref"].endswith("/Problem")
    assert "HTTPValidationError" not in schema["components"]["schemas"]


def test_the_export_is_the_same_in_every_process() -> None:
    command = [sys.executable, "-m", "app.cli", "openapi"]
    other = subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True
    )
    assert other.stdout == schema_text()
