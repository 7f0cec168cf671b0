"""Names that every feature shares: ids, states, lanes, modes, the base of errors."""
