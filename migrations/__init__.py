"""Dated, small steps of the schema, run by Alembic."""
