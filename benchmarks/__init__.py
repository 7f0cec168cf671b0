"""Measures this machine with Convener on it: throughput, latency and memory, beside PostgreSQL's own yardstick."""
