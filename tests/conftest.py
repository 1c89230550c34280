"""Real servers that tests of every kind ask for by name."""

import os

from tests.support.postgres import postgres, postgres_url
from tests.support.s3 import s3
from tests.support.stores import place

__all__ = ["place", "postgres", "postgres_url", "s3"]

# Servers and commands are started hundreds of times: what they import is compiled by the first of them alone.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
