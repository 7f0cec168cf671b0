"""Permits for calls of language models, within the limits that their services bear."""
