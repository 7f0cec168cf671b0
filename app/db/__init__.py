"""Connections, batching, notifications, leased duties, retention and migrations."""
