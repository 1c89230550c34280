"""Where requests begin and end in the worker's output. Pure.

The worker writes marks into its standard output, so that they stand in order with whatever its threads and the programs
it starts print there. PID 1 takes them out, and puts Function Compute's lines in their place, where something was
printed while the request was open, or it has been open for a while: a request that prints nothing and is soon done
costs the host no line, and the log no space.

    0x1e B <request id> newline     the request begins
    0x1e E <request id> newline     it ends
    0x1e S newline                  the lines of all that are open are wanted, whether or not they print
    0x1e X <number> newline         so many bytes were written to standard error just before
"""

from __future__ import annotations

import re

from roost.guest.logs import LineSplitter

#: More than the highest concurrency; of more, the oldest are forgotten.
MAX_OPEN = 1024
MAX_ID = 128
#: Turns between the two streams in what is read at once; a flood that has more is not kept in its order.
MAX_RUNS = 64
SHOW = b"\x1eS\n"
_MARK = re.compile(rb"\x1e([BESX])([^\x1e\n]{0,128})\n")
_COUNT = re.compile(rb"[0-9]{1,15}")
_LONGEST = MAX_ID + 3


def begins(request: str) -> bytes:
    return b"\x1eB%b\n" % request[:MAX_ID].encode("ascii", "replace")


def ends(request: str) -> bytes:
    return b"\x1eE%b\n" % request[:MAX_ID].encode("ascii", "replace")


def errors(count: int) -> bytes:
    return b"\x1eX%d\n" % count


class MarkedOutput:
    """Bytes of standard output in, lines out: those that were printed, and those that say whose they are."""

    def __init__(self) -> None:
        self._lines = LineSplitter()
        self._torn = b""  # the beginning of what may become a mark
        self._open: dict[bytes, bool] = {}  # requests, in the order of their begin; whether their line is out
        self._hidden = 0  # of them, those whose line is not out
        self._aged: set[bytes] = set()  # of those, who were among them at the last call of `age`

    def feed(self, data: bytes, *, errors: int = 0) -> list[tuple[int, list[bytes]]]:
        """Runs of lines, at least one; before each of them so many bytes of standard error have their place.

        `errors` is how many bytes came on standard error, read after `data`. What no mark gives a place to (a program
        wrote it) has it at the end: it may be of any request, so that none is left out.
        """
        pieces = _MARK.split(self._whole(data))
        places = _places(pieces, errors)
        loud = errors > sum(places)
        places.reverse()
        run: list[bytes] = []
        runs = [(0, run)]
        if loud:
            self._show(run)
        for at in range(0, len(pieces) - 1, 3):
            text, kind, request = pieces[at : at + 3]
            if text:
                self._print(text, run)
            if kind == b"B":
                self._begin(request, run)
                if loud:
                    self._show(run)
            elif kind == b"E":
                self._end(request, run)
            else:
                self._show(run)
                if kind == b"X":
                    place = places.pop()
                    if len(runs) > 1 and (not run or len(runs) == MAX_RUNS):
                        runs[-1] = runs[-1][0] + place, run
                    else:
                        run = []
                        runs.append((place, run))
        if pieces[-1]:
            self._print(pieces[-1], run)
        return runs

    @property
    def hidden(self) -> bool:
        """There are open requests that nobody knows of yet."""
        return self._hidden > 0

    def age(self) -> list[bytes]:
        """Call it from time to time, while some are hidden: the lines of those that were hidden at the call before."""
        run: list[bytes] = []
        hidden = {request for request, shown in self._open.items() if not shown}
        for request in self._open:
            if request in hidden and request in self._aged:
                self._show_one(request, run)
        self._aged = hidden
        return run

    def finish(self) -> list[bytes]:
        """The last lines of an output that has ended, also of requests that have not."""
        run: list[bytes] = []
        self._show(run)
        torn, self._torn = self._torn, b""
        return run + self._lines.feed(torn) + self._lines.finish()

    def _whole(self, data: bytes) -> bytes:
        """`data` up to a mark that is not all there yet; the rest waits for more."""
        data = self._torn + data
        self._torn = b""
        start = data.rfind(b"\x1e", -_LONGEST)
        if start >= 0 and b"\n" not in data[start:]:
            data, self._torn = data[:start], data[start:]
        return data

    def _print(self, text: bytes, run: list[bytes]) -> None:
        self._show(run)
        run += self._lines.feed(text)

    def _begin(self, request: bytes, run: list[bytes]) -> None:
        if not self._open:
            run += self._lines.finish()  # printed before, without an end of its line
        self._hidden += self._open.get(request, True)
        self._open[request] = False
        if len(self._open) > MAX_OPEN:
            self._hidden -= not self._open.pop(next(iter(self._open)))

    def _end(self, request: bytes, run: list[bytes]) -> None:
        shown = self._open.pop(request, None)
        if shown is None:
            return
        if not self._open:
            run += self._lines.finish()
        if shown:
            run.append(b"FC Invoke End RequestId: %b\n" % request)
        else:
            self._hidden -= 1

    def _show(self, run: list[bytes]) -> None:
        if self._hidden:
            for request, shown in self._open.items():
                if not shown:
                    self._show_one(request, run)

    def _show_one(self, request: bytes, run: list[bytes]) -> None:
        self._open[request] = True
        self._hidden -= 1
        run.append(b"FC Invoke Start RequestId: %b\n" % request)


def _places(pieces: list[bytes], errors: int) -> list[int]:
    """Of how many bytes of standard error the marks say that they belong before them. When they speak of more than
    there are, the first of these came before its mark, with the output before."""
    counts = [
        int(pieces[at + 1]) if _COUNT.fullmatch(pieces[at + 1]) else 0
        for at in range(1, len(pieces), 3)
        if pieces[at] == b"X"
    ]
    missing = max(0, sum(counts) - errors)
    for at, count in enumerate(counts):
        counts[at] = max(0, count - missing)
        missing = max(0, missing - count)
    return counts
