"""Six agents and a supervisor that rediscover Kepler's third law from published orbits by symbolic regression."""
