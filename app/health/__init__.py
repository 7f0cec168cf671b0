"""Health reports, alerts, metrics and their delivery."""
