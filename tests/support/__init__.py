"""Servers and helpers that tests share. Nothing here is part of Roost."""

import pytest

pytest.register_assert_rewrite("tests.support.queue_cases")
