"""paho-mqtt for asyncio: its thread does the network, everything else happens on the loop.

paho, since it is the one client of these that lets a message be acknowledged later, by who worked on it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from roost.functions.triggers.endpoints import Endpoint
from roost.model.errors import Unavailable
from roost.triggers.sources.queues import foreign, let_go

_KEEPALIVE_S = 30
_REPLY_S = 10.0
#: Acknowledged, and yet nobody got it.
_NO_SUBSCRIBERS = 0x10


class Refused(Unavailable):
    """The broker answered, and said no."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What the broker keeps of a client, for `seconds` after it has gone; `most`: unacknowledged messages at a time."""

    client_id: str
    seconds: int
    most: int
    version: str


class MqttClient:
    """One connection, as a context. Not made anew when it is lost: `on_lost` is told, and whatever waits fails."""

    def __init__(
        self,
        endpoint: Endpoint,
        session: Session,
        on_message: Callable[[MQTTMessage], None] = lambda message: None,
        on_lost: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self._endpoint = endpoint
        self._session = session
        self._on_message = on_message
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._connected: asyncio.Future[ReasonCode] = self._loop.create_future()
        self._replies: dict[int, asyncio.Future[ReasonCode]] = {}  # by packet
        self._modern = session.version == "5"
        self._client = self._make()

    def _make(self) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._session.client_id,
            clean_session=None if self._modern else self._session.seconds == 0,
            protocol=MQTTProtocolVersion.MQTTv5 if self._modern else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        if self._endpoint.user:
            client.username_pw_set(self._endpoint.user, self._endpoint.password or None)
        if self._endpoint.secure:
            client.tls_set_context(ssl.create_default_context())
        client.on_connect = self._connect_answered
        client.on_disconnect = self._disconnected
        client.on_message = lambda _client, _data, message: self._call(self._on_message, message)
        client.on_publish = lambda _client, _data, packet, reason, _properties: self._call(self._answer, packet, reason)
        client.on_subscribe = lambda _client, _data, packet, reasons, _properties: self._call(
            self._answer, packet, reasons[0]
        )
        return client

    # --- life --------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> MqttClient:
        """Raises Unavailable."""
        with foreign(self._place):
            opening = asyncio.create_task(asyncio.to_thread(self._open))
            try:
                await asyncio.shield(opening)
                async with asyncio.timeout(_REPLY_S):
                    await self._connected
            except BaseException:
                await asyncio.wait({opening})  # a thread can't be cancelled, and what it has opened is to be closed
                await self._close()
                raise
        return self

    def _open(self) -> None:
        properties = None
        if self._modern:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = self._session.seconds
            properties.ReceiveMaximum = min(self._session.most, 0xFFFF)
        fresh: dict[str, Any] = {"clean_start": self._session.seconds == 0} if self._modern else {}
        self._client.connect(
            self._endpoint.host, self._endpoint.port, keepalive=_KEEPALIVE_S, properties=properties, **fresh
        )
        self._client.loop_start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        """What was to be sent is sent first."""
        self._on_lost = lambda error: None
        self._client.disconnect()
        await let_go(asyncio.to_thread(self._client.loop_stop))

    @property
    def _place(self) -> str:
        return f"MQTT at {self._endpoint.place}"

    # --- verbs -------------------------------------------------------------------------------------------------

    async def subscribe(self, pattern: str) -> None:
        """With QoS 1. Retained messages come when the session is new to the subscription. Raises Unavailable."""
        options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
        sent, packet = (
            self._client.subscribe(pattern, options=options) if self._modern else self._client.subscribe(pattern, qos=1)
        )
        reason = await self._reply(sent, packet)
        if reason.is_failure:
            raise Refused(f"{self._place} refused the subscription to {pattern}: {reason}.")

    async def publish(self, topic: str, body: bytes, user: Mapping[str, str], *, content_type: str = "") -> None:
        """With QoS 1, until the broker has it. Raises Refused, also when nobody will get it; Unavailable."""
        properties = None
        if self._modern:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.UserProperty = list(user.items())
            if content_type:
                properties.ContentType = content_type
        sent = self._client.publish(topic, body, qos=1, properties=properties)
        reason = await self._reply(sent.rc, sent.mid)
        if reason.is_failure or reason.value == _NO_SUBSCRIBERS:
            raise Refused(str(reason).lower())

    def acknowledge(self, message: MQTTMessage) -> None:
        self._client.ack(message.mid, message.qos)

    async def _reply(self, sent: MQTTErrorCode, packet: int | None) -> ReasonCode:
        if sent != MQTTErrorCode.MQTT_ERR_SUCCESS or packet is None:
            raise Unavailable(f"The connection to {self._place} is lost.")
        reply = self._replies[packet] = self._loop.create_future()
        try:
            with foreign(self._place):
                async with asyncio.timeout(_REPLY_S):
                    reason: ReasonCode = await reply
                    return reason
        finally:
            del self._replies[packet]

    # --- what the thread tells ---------------------------------------------------------------------------------

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        """On the loop, unless that is gone."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _connect_answered(
        self, _client: Client, _data: object, _flags: ConnectFlags, reason: ReasonCode, _properties: object
    ) -> None:
        self._call(self._settle, reason)

    def _settle(self, reason: ReasonCode) -> None:
        if self._connected.done():
            return
        if reason.is_failure:
            self._connected.set_exception(Unavailable(f"{self._place} refused the connection: {reason}."))
        else:
            self._connected.set_result(reason)

    def _disconnected(
        self, _client: Client, _data: object, _flags: DisconnectFlags, reason: ReasonCode, _properties: object
    ) -> None:
        self._call(self._lose, f"The connection to {self._place} is lost: {reason}.")

    def _lose(self, said: str) -> None:
        error = Unavailable(said)
        for future in [self._connected, *self._replies.values()]:
            if not future.done():
                future.set_exception(error)
        self._on_lost(error)

    def _answer(self, packet: int, reason: ReasonCode) -> None:
        reply = self._replies.get(packet)
        if reply is not None and not reply.done():
            reply.set_result(reason)
