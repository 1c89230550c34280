"""Triggers of type rabbitmq: a real broker, its official client, a real server."""

from __future__ import annotations

from tests.support.brokers import RabbitServer
from tests.support.queue_cases import QueueCases
from tests.support.queues import RabbitQueue


class TestRabbitmq(QueueCases):
    broker_kind = RabbitServer
    queue_kind = RabbitQueue
    settles_across_restarts = False
