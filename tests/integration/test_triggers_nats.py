"""Triggers of type nats: a real broker, its official client, a real server."""

from __future__ import annotations

from tests.support.brokers import NatsServer
from tests.support.queue_cases import QueueCases
from tests.support.queues import NatsQueue


class TestNats(QueueCases):
    broker_kind = NatsServer
    queue_kind = NatsQueue
