"""How facts are kept: every SQL statement of the project, one function each. Nothing here commits but database.py."""
