"""Worker daemons: registered, watched, directed, started on hosts and replaced."""
