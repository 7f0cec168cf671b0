"""What outlives a task: context, checkpoints, backups."""
