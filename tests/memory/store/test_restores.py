"""Definitions of tables for a restore, in a process that has imported nothing else."""

import subprocess
import sys

_PROGRAM = """
import sys
from app.memory.store import restores

assert "app.metadata" not in sys.modules
for part, table in restores.TABLES.items():
    assert restores.unknown_columns(table, [{name: None for name in (*table.c.keys(), "nonsense")}]) == {"nonsense"}
"""


def test_a_restore_brings_all_its_tables_along() -> None:
    assert subprocess.run([sys.executable, "-c", _PROGRAM]).returncode == 0
