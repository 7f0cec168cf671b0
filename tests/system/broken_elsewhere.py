"""Agents of another host, which alone runs them."""

from tests.system.broken import run

HANDLERS = {"proximity": run}
