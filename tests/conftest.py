"""Real servers that tests of every kind ask for by name."""

from tests.support.postgres import postgres, postgres_url

__all__ = ["postgres", "postgres_url"]
