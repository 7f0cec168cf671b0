"""Ids of tasks and workers."""

from typing import NewType
from uuid import UUID

TaskId = NewType("TaskId", UUID)


WorkerId = NewType("WorkerId", UUID)
