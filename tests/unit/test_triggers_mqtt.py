"""MQTT's acknowledgements: in the order in which messages came, as the protocol wants it."""

from __future__ import annotations

from typing import cast

from paho.mqtt.client import MQTTMessage

from roost.triggers.batches import BatchSettings
from roost.triggers.sources.mqtt import MqttConsumer
from roost.triggers.sources.mqtt_client import MqttClient


class RecordedClient:
    """What is acknowledged, by the packets' numbers."""

    def __init__(self) -> None:
        self.acknowledged: list[int] = []

    def acknowledge(self, message: MQTTMessage) -> None:
        self.acknowledged.append(message.mid)


def letter(number: int, *, qos: int = 1) -> MQTTMessage:
    made = MQTTMessage(number, b"a/b")
    made.payload = str(number).encode()
    made.qos = qos
    return made


def consumer(most: int) -> tuple[MqttConsumer, RecordedClient]:
    made, client = MqttConsumer(BatchSettings(size=most), grave="dead"), RecordedClient()
    made.client = cast(MqttClient, client)
    return made, client


async def test_an_acknowledgement_waits_for_those_before_it() -> None:
    made, client = consumer(10)
    for number in (1, 2, 3, 4):
        made.take(letter(number))
    first, second, third, fourth = await made.receive(10, 0)
    await made.acknowledge([third])
    assert client.acknowledged == []
    await made.acknowledge([first])
    assert client.acknowledged == [1]
    await made.acknowledge([second])
    assert client.acknowledged == [1, 2, 3]
    await made.release([fourth])
    assert client.acknowledged == [1, 2, 3]


async def test_at_the_end_what_is_done_is_acknowledged_all_the_same() -> None:
    made, client = consumer(10)
    for number in (1, 2):
        made.take(letter(number))
    first, second = await made.receive(10, 0)
    await made.acknowledge([second])
    await made.release([first])
    assert client.acknowledged == [2]


async def test_messages_that_may_get_lost_are_when_all_is_full() -> None:
    made, client = consumer(2)
    for number in (1, 2, 3):
        made.take(letter(number, qos=0))
    made.take(letter(4))
    received = await made.receive(10, 0)
    assert [one.body for one in received] == [b"1", b"2", b"4"]
    await made.acknowledge(received)
    assert client.acknowledged == [4]
