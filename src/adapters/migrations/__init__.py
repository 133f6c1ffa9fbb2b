"""Alembic's revisions of the database schema, for both databases."""
