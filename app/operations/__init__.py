"""What happens: read, decide by a rule of the domain, write, in one transaction that the caller commits."""
