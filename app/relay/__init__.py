"""The relay: one process that speaks for all workers of a place, and joins their calls into few requests."""
