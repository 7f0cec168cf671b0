"""Tasks from a file."""

import json
from pathlib import Path

from app.queue.cli.submit import read_tasks


def test_strings_in_lines_of_json_may_hold_every_character(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    tasks = [{"agent_type": "generation", "payload": {"text": f"a{end}b"}} for end in "\x85\u2028\u2029"]
    file.write_text("\r\n".join(json.dumps(task, ensure_ascii=False) for task in tasks) + "\n\n", encoding="utf-8")
    assert read_tasks(str(file)) == tasks
