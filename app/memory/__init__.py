"""Data that outlives tasks and servers: Context Memory, checkpoints, and backups."""
