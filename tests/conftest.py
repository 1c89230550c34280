"""Real servers that tests of every kind ask for by name."""

import os
import signal

from hypothesis import HealthCheck, settings

from tests.support.postgres import postgres, postgres_url
from tests.support.s3 import s3
from tests.support.stores import place

__all__ = ["place", "postgres", "postgres_url", "s3"]

# Servers and commands are started hundreds of times: what they import is compiled by the first of them alone.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Whoever starts the tests in the background, or under nohup, ignores these; what they start must hear them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Property tests are about values, not about time: the machine may be busy.
settings.register_profile("roost", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("roost")
