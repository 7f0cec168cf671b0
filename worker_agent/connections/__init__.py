"""Connections to the control plane, the same for commands, workers and examples: a unix socket, TLS, or loopback."""
