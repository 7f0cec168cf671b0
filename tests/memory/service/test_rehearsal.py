"""Clusters in which backups are checked: none is left, whoever was killed."""

import tempfile
from pathlib import Path

import pytest

from app.memory.service.rehearsal import remove_abandoned
from app.postgres.cluster import lock_directory


def test_clusters_of_killed_rehearsals_go_and_those_at_work_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    abandoned, at_work, begun = (tmp_path / f"convener-verify-{name}" for name in ("abandoned", "work", "begun"))
    lock_directory(abandoned / "postgres").release()
    begun.mkdir()
    with lock_directory(at_work / "postgres"):
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr("os.geteuid", lambda: tmp_path.stat().st_uid + 1)
            remove_abandoned()
        assert abandoned.exists()
        remove_abandoned()
    assert {path.name for path in tmp_path.iterdir()} == {at_work.name, begun.name}
