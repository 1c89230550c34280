"""Triggers of type mqtt: a real broker, its official client, a real server."""

from __future__ import annotations

from tests.support.brokers import Mosquitto
from tests.support.queue_cases import QueueCases
from tests.support.queues import MqttQueue


class TestMqtt(QueueCases):
    broker_kind = Mosquitto
    queue_kind = MqttQueue
    settles_across_restarts = False
