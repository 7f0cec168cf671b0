"""Pure rules: no IO, no clock, no async, standard library only."""
