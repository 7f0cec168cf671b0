"""`convener simulate`."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.command_line import CommandLine


def test_a_table_for_people(offline: CommandLine) -> None:
    done = offline.run("simulate", "step", "--min", "2", "--baseline", "dask", "--baseline", "hpa")
    assert (done.code, done.err) == (0, "")
    assert [line.split()[0] for line in done.out.splitlines()[1:5]] == ["scaler", "convener", "dask", "hpa"]


def test_json_for_programs_with_every_baseline(offline: CommandLine) -> None:
    done = offline.run("simulate", "azure-code", "--baseline", "all", "-o", "json")
    document = json.loads(done.out)
    assert [run["scaler"] for run in document["runs"]] == [
        "convener", "threshold", "hpa", "knative", "dask", "keda-1", "keda-2", "keda-5", "static",
    ]  # fmt: skip
    assert "GeneratedTokens" in document["assumption"]
    assert document["runs"][0]["breaches"] == 0


def test_what_was_assumed_stands_beside_the_figures(offline: CommandLine) -> None:
    assert "assumed: service seconds = 3 + 0.05" in offline.run("simulate").out


def test_a_drawing(offline: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "pool.svg"
    assert offline.run("simulate", "step", "--svg", str(file)).code == 0
    assert ElementTree.parse(file).getroot().tag.endswith("svg")


def test_modes_bring_their_bounds(offline: CommandLine) -> None:
    fixed = offline.run("simulate", "step", "--policy", "development", "-o", "json")
    assert json.loads(fixed.out)["runs"][0]["peak_workers"] == 2
    careful = offline.run("simulate", "step", "--policy", "trusted_tester", "-o", "json")
    assert json.loads(careful.out)["runs"][0]["peak_workers"] == 50


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nothing.csv"], "nothing.csv cannot be read"),
        (["step", "--min", "9", "--max", "3"], "--min 9 is more than --max 3"),
        (["step", "--baseline", "magic"], "'magic' is not known"),
        (["step", "--scale-down-threshold", "0.9"], "must be less"),
        (["step", "--svg", "/nowhere/at/all.svg"], "cannot be written"),
    ],
)
def test_wrong_usage(offline: CommandLine, arguments: list[str], complaint: str) -> None:
    done = offline.run("simulate", *arguments)
    assert (done.code, done.out) == (2, "")
    assert complaint in " ".join(done.err.replace("│", " ").split())


def test_a_file_that_makes_no_sense(offline: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("when,what\n1,2\n")
    done = offline.run("simulate", str(file))
    assert done.code == 2
    assert "has no" in done.err
