"""Names of workers beside their ids, looked up at the read: rows of workers are kept longer than what names them."""


def worker_name(source: str) -> str:
    """Return a column of a SELECT from `source`: the name of the worker that a row names, else NULL."""
    return f"(SELECT w.name FROM workers w WHERE w.id = {source}.worker_id) AS worker_name"
