"""Parts of supervisors: a client that outlives restarts of the service, the dispatch of tasks, and ratings."""
