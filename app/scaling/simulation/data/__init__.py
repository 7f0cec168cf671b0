"""Traces that come along; ATTRIBUTION.md names their source and licence."""
