"""The six agents: one file, one handler each."""
