"""What supervisors have in common: calls that outlive restarts of the service, tasks out and results back, ratings."""
