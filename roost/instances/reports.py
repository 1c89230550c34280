"""Where instances report to: transitions to the observer, output to the function's log."""

from __future__ import annotations

from roost.model.function import FunctionSpec
from roost.model.instance import State
from roost.model.usage import TransitionRecord
from roost.telemetry.logs import FunctionLogs, InstanceLog
from roost.telemetry.observer import Observer


class Reports:
    """Implements `instance.Events`."""

    def __init__(self, observer: Observer, logs: FunctionLogs) -> None:
        self._observer = observer
        self._logs = logs
        self._open: dict[str, InstanceLog] = {}

    def transition(self, record: TransitionRecord) -> None:
        """An instance changed its state."""
        self._observer.transition(record)
        if record.after is State.STOPPED:
            self._open.pop(record.instance_id, None)

    def output(self, spec: FunctionSpec, instance_id: str, session_id: str, stream: str, text: str) -> None:
        """Whole lines that the instance printed."""
        log = self._open.get(instance_id)
        if log is None:
            log = self._open[instance_id] = InstanceLog(
                self._logs,
                account=spec.account,
                function=spec.name,
                version=spec.version,
                instance=instance_id,
                session_id=session_id,
            )
        log.write(stream, text)

    def worker_ended(self, instance_id: str) -> None:
        """Its open requests print no more."""
        if log := self._open.get(instance_id):
            log.worker_ended()
