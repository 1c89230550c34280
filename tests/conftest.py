"""Real servers that tests of every kind ask for by name."""

from tests.support.postgres import postgres, postgres_url
from tests.support.stores import place

__all__ = ["place", "postgres", "postgres_url"]
