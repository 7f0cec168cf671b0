"""`make sbom` lists every package of the lock with version and hashes, in a form that fits the schema of CycloneDX."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker.images import REPOSITORY


@pytest.mark.slow
def test_the_bill_of_materials_is_whole_and_valid(tmp_path: Path) -> None:
    # Importing it takes more than a second, which every process that collects tests would wait for.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    recipe = next(line for line in (REPOSITORY / "Makefile").read_text().splitlines() if "cyclonedx-py" in line)
    words = recipe.strip().replace("$(SBOM)", str(tmp_path / "sbom.json")).split()
    assert words[0] == "@$(BIN)/cyclonedx-py"
    command = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", *words[1:]]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "sbom.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document = json.loads(text)
    listed = {component["name"]: component["version"] for component in document["components"]}
    lock = (REPOSITORY / "requirements" / "run.txt").read_text()
    assert listed == dict(re.findall(r"^([\w.-]+)==([^\s;]+)", lock, re.MULTILINE))
    for component in document["components"]:
        assert component["purl"].startswith("pkg:pypi/")
        hashes = [entry for reference in component["externalReferences"] for entry in reference["hashes"]]
        assert hashes, component["name"]
    assert document["metadata"]["component"]["name"] == "convener"
