"""Triggers of type redis: a real broker, its official client, a real server."""

from __future__ import annotations

from tests.support.brokers import RedisServer
from tests.support.queue_cases import QueueCases
from tests.support.queues import RedisQueue


class TestRedis(QueueCases):
    broker_kind = RedisServer
    queue_kind = RedisQueue
