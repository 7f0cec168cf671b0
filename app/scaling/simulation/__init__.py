"""The rules of the pool on a virtual clock: a trace of tasks goes in, what would have happened comes out."""
