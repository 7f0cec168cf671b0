"""Ways to tell other services."""
