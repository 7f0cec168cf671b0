"""A bundled PostgreSQL: a child process of this service, which is restarted after a crash."""
