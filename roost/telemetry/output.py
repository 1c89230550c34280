"""The way of instances' output into their functions' logs: each line finds its request, session and version."""

from __future__ import annotations

from collections import OrderedDict

from roost.model.function import FunctionSpec
from roost.model.instance import State
from roost.model.usage import InvocationRecord, Outcome, TransitionRecord
from roost.telemetry.attribution import Attributor
from roost.telemetry.log_record import Source, visible
from roost.telemetry.logs import FunctionLogs

#: Instances remembered at most; one more than that starts anew with its attribution.
MAX_INSTANCES = 10_000
#: The guest tells the ends of these itself.
_TOLD = (Outcome.OK, Outcome.FUNCTION_ERROR)


class _Known:
    __slots__ = ("attributor", "source")

    def __init__(self, attributor: Attributor, source: Source) -> None:
        self.attributor = attributor
        self.source = source


class Output:
    """Takes what instances print. Also a sink of the Observer, to learn of sessions, lost requests and ends."""

    def __init__(self, logs: FunctionLogs) -> None:
        self._logs = logs
        self._instances: OrderedDict[str, _Known] = OrderedDict()

    def output(self, spec: FunctionSpec, instance_id: str, stream: str, text: str) -> None:
        """Whole lines of one instance, in order. Never blocks."""
        known = self._instances.get(instance_id)
        if known is None:
            known = self._instances[instance_id] = _Known(
                Attributor(exclusive=spec.concurrency == 1),
                Source(account=spec.account, function=spec.name, instance=instance_id, version=spec.version),
            )
            if len(self._instances) > MAX_INSTANCES:
                self._instances.popitem(last=False)
        self._logs.write(known.source, stream, known.attributor.attribute(visible(text)))

    def tail(self, request_id: str) -> bytes:
        """What `x-fc-log-type: Tail` returns: the last 4 KiB that this request printed so far."""
        return self._logs.tail_for_known_request(request_id)

    def invocation(self, record: InvocationRecord) -> None:
        if record.outcome in _TOLD:
            return
        known = self._instances.get(record.instance_id)
        if known is not None:
            known.attributor.abandon(record.request_id)

    def transition(self, record: TransitionRecord) -> None:
        if record.after in (State.STOPPED, State.PAUSED):
            self._instances.pop(record.instance_id, None)
            return
        known = self._instances.get(record.instance_id)
        if known is not None and known.source.session_id != record.session_id:
            known.source = Source(
                account=record.account,
                function=record.function,
                instance=record.instance_id,
                version=record.version,
                session_id=record.session_id,
            )
