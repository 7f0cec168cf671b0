"""How worker processes come to be: one file a way."""
