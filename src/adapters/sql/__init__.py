"""The Store on SQLAlchemy Core: ``postgresql://`` and ``sqlite://``."""
