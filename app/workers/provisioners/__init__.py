"""Provisioners, which start and end worker processes: one file for each kind."""
