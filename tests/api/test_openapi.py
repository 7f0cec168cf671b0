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


def test_the_export_is_the_same_in_every_process() -> None:
    command = [sys.executable, "-m", "app.cli", "openapi"]
    other = subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True
    )
    assert other.stdout == schema_text()
