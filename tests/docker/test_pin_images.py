"""`docker/pin-images` asks for each image and writes its digest beside what .env already holds."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.docker.composition import DIGEST, DIRECTORY, TAGS


def _pin(tmp_path: Path, answer: str) -> "subprocess.CompletedProcess[str]":
    """Run a copy of the script with a `docker` that gives this answer."""
    for name in ("pin-images", "images.txt"):
        shutil.copy(DIRECTORY / name, tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "docker").write_text(f'#!/bin/sh\necho "$@" >> "$(dirname "$0")/calls"\necho "{answer}"\n')
    (programs / "docker").chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}"}
    return subprocess.run([tmp_path / "pin-images"], env=environment, capture_output=True, text=True, timeout=60)


def test_digests_replace_former_ones_and_nothing_else(tmp_path: Path) -> None:
    env = tmp_path / ".env"
    env.write_text("POSTGRES_PASSWORD=a=b\nPYTHON_IMAGE=python:3.1@sha256:old\n")
    for _ in range(2):
        done = _pin(tmp_path, DIGEST)
        assert done.returncode == 0, done.stderr
    pinned = [f"{name}={tag}@{DIGEST}" for name, tag in TAGS.items()]
    assert env.read_text().splitlines() == ["POSTGRES_PASSWORD=a=b", *pinned]
    assert stat.S_IMODE(env.stat().st_mode) == 0o600
    calls = (tmp_path / "bin" / "calls").read_text().splitlines()
    assert calls[: len(TAGS)] == [
        f"buildx imagetools inspect {tag} --format {{{{.Manifest.Digest}}}}" for tag in TAGS.values()
    ]


@pytest.mark.parametrize("answer", ["", "latest", "sha256:abc", f"{DIGEST} x"])
def test_what_is_no_digest_changes_nothing(tmp_path: Path, answer: str) -> None:
    env = tmp_path / ".env"
    env.write_text("POSTGRES_PASSWORD=x\n")
    done = _pin(tmp_path, answer)
    assert done.returncode == 1
    assert "named no digest" in done.stderr
    assert env.read_text() == "POSTGRES_PASSWORD=x\n"
    assert not list(tmp_path.glob(".env.*"))
