"""Alembic's migrations of the tables in tasks/models.py."""
