"""`convener openapi` writes the schema and notices a stale one."""

import json
from pathlib import Path

from tests.support.command_line import CommandLine


def test_a_stale_file_is_noticed(offline: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "new" / "openapi.json"
    missing = offline.run("openapi", "--check", str(file))
    assert (missing.code, missing.out) == (2, "")
    assert f"{file} cannot be read: No such file or directory" in " ".join(missing.err.split())
    assert "make openapi" in missing.err
    assert offline.run("openapi", "--write", str(file)).code == 0
    assert offline.run("openapi", "--check", str(file)).code == 0
    file.write_text(file.read_text().replace("Convener", "Convenor"))
    assert offline.run("openapi", "--check", str(file)).code == 1


def test_without_a_file_it_goes_to_stdout(offline: CommandLine) -> None:
    done = offline.run("openapi")
    assert json.loads(done.out)["info"]["title"] == "Convener"
