"""Tasks: submitted, queued fairly, leased one each, completed, retried or given up; and the events that record it."""
