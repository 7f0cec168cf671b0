"""Agent types: what they achieve, and the share of the leases that follows from it."""
