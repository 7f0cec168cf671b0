"""Research that runs on Convener: supervisors and agents that know only its HTTP contract."""
