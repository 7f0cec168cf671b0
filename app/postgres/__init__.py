"""Runs a bundled PostgreSQL as a child of this service, and brings it back after a crash."""
