"""The way of instances' output into their functions' logs: each line finds its request, session and version."""

from __future__ import annotations

from collections import OrderedDict

from roost.model.function import FunctionSpec
from roost.model.instance import State
from roost.model.usage import InvocationRecord, Outcome, TransitionRecord
from roost.telemetry.attribution import Attributor
from roost.telemetry.logs import FunctionLogs

#: Instances remembered at most; one more than that starts anew with its attribution.
MAX_INSTANCES = 10_000


class _Known:
    __slots__ = ("attributor", "session_id")

    def __init__(self, attributor: Attributor) -> None:
        self.attributor = attributor
        self.session_id = ""


class Output:
    """Takes what instances print. Also a sink of the Observer, to learn of sessions, lost requests and ends."""

    def __init__(self, logs: FunctionLogs) -> None:
        self._logs = logs
        self._instances: OrderedDict[str, _Known] = OrderedDict()

    def output(self, spec: FunctionSpec, instance_id: str, stream: str, text: str) -> None:
        """Whole lines of one instance, in order. Never blocks."""
        known = self._instances.get(instance_id)
        if known is None:
            known = self._instances[instance_id] = _Known(Attributor(exclusive=spec.concurrency == 1))
            if len(self._instances) > MAX_INSTANCES:
                self._instances.popitem(last=False)
        for line in known.attributor.attribute(text):
            self._logs.append(
                spec.account,
                spec.name,
                instance_id,
                stream,
                line.text,
                request_id=line.request_id,
                version=spec.version,
                session_id=known.session_id,
                level=line.level,
                ends=line.ends,
            )

    def tail(self, request_id: str) -> bytes:
        """What `x-fc-log-type: Tail` returns: the last 4 KiB that this request printed so far."""
        return self._logs.tail_for_known_request(request_id)

    def invocation(self, record: InvocationRecord) -> None:
        known = self._instances.get(record.instance_id)
        if known is not None and record.outcome not in (Outcome.OK, Outcome.FUNCTION_ERROR):
            known.attributor.abandon(record.request_id)

    def transition(self, record: TransitionRecord) -> None:
        if record.after in (State.STOPPED, State.PAUSED):
            self._instances.pop(record.instance_id, None)
            return
        known = self._instances.get(record.instance_id)
        if known is not None:
            known.session_id = record.session_id
