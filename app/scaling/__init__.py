"""Decisions on the number of workers, the assignment of each, and its compute."""
