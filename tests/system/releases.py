"""Releases as an upgrade meets them: the former one from the history of this repository, and that of this checkout."""

import io
import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.db import schema

ROOT = Path(schema.__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A release: the Python that has its code, and where its processes run."""

    python: Path
    directory: Path

    def command(self, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        """Run `convener` to its end."""
        command = [str(self.python), "-m", "app.cli", *arguments]
        return subprocess.run(
            command, cwd=self.directory, env=_environment(settings), capture_output=True, text=True, check=True
        )

    @contextmanager
    def process(self, *arguments: str, log: Path, **settings: str) -> Iterator["subprocess.Popen[bytes]"]:
        """A module that runs as a child until the end of the block, if it is not stopped before."""
        with log.open("ab") as output:
            child = subprocess.Popen(
                [str(self.python), "-m", *arguments],
                cwd=self.directory,
                env=_environment(settings),
                stdout=output,
                stderr=output,
            )
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _environment(settings: dict[str, str]) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith("CONVENER_")}
    return others | {f"CONVENER_{name.upper()}": value for name, value in settings.items()}


def present_release() -> Release:
    """The code of this checkout."""
    return Release(python=Path(sys.executable), directory=ROOT)


def former_release(directory: Path) -> Release | None:
    """The code of the release before, in an environment with our libraries; None where the history does not have it."""
    commit = json.loads(schema.PREVIOUS.read_text())["commit"]
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", "--format=zip", commit], capture_output=True)
    if archive.returncode != 0:
        return None
    source, environment = directory / "source", directory / "environment"
    with zipfile.ZipFile(io.BytesIO(archive.stdout)) as files:
        files.extractall(source)
    venv.create(environment, symlinks=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    # Paths of modules, the first one before the other. This checkout, to which a file among ours leads, is in neither.
    (own / "former.pth").write_text(f"{source}\n{sysconfig.get_path('purelib')}\n")
    return Release(python=environment / "bin" / "python", directory=source)
