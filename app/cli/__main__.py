"""`python -m app.cli` is `convener`."""

from app.cli import main

main()
