"""Pages for people: what goes on now, why, and the means to act; all by way of the service's own API."""
