"""Representations that E2B's clients expect beside IPython's: tables, charts, JSON of plain lists and objects."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from IPython.core.formatters import BaseFormatter, DisplayFormatter, JSONFormatter, catch_format_error
from traitlets import ObjectName, Unicode

TEXT = "text/plain"


_PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None)))
#: By which a formatter knows that something is shown by a function: a class, its name, an object.
_PRINTERS = ("type_printers", "deferred_printers", "singleton_printers")


class ResultFormatter(DisplayFormatter):
    """Numbers and texts have no representation but their text, unless somebody has registered one for their kind:
    fourteen formatters need not be asked each time, which took half of a small cell's time."""

    def format(self, obj: Any, include: Any = None, exclude: Any = None) -> Any:
        if type(obj) not in _PLAIN or include or exclude or self._shows(obj):
            return super().format(obj, include, exclude)
        text = self.formatters[TEXT](obj)
        return ({} if text is None else {TEXT: text}), {}

    def _shows(self, obj: Any) -> bool:
        """Whether anything but its text may be registered for it."""
        keys = {*type(obj).__mro__, *((kind.__module__, kind.__name__) for kind in type(obj).__mro__), id(obj)}
        others = (one for name, one in self.formatters.items() if name != TEXT)
        # What was never asked for is not there: reading it by its name would make it.
        return any(
            not keys.isdisjoint(formatter._trait_values.get(printers) or ())
            for formatter in (self.ipython_display_formatter, self.mimebundle_formatter, *others)
            for printers in _PRINTERS
        )


class TableFormatter(BaseFormatter):
    """A pandas DataFrame as its columns."""

    format_type = Unicode("e2b/data")
    print_method = ObjectName("_repr_e2b_data_")
    _return_type = (dict, str)

    def __call__(self, obj: Any) -> Any:
        pandas = sys.modules.get("pandas")
        if pandas is None or not isinstance(obj, pandas.DataFrame):
            return super().__call__(obj)
        columns = obj.to_dict(orient="list")
        stamp = pandas.Timestamp
        return {
            name: [value.isoformat() if isinstance(value, stamp) else value for value in values]
            for name, values in columns.items()
        }


class ChartFormatter(BaseFormatter):
    """A matplotlib figure as the data that it shows, by the package `e2b-charts`."""

    format_type = Unicode("e2b/chart")
    print_method = ObjectName("_repr_e2b_chart_")
    _return_type = (dict, str)

    def __call__(self, obj: Any) -> Any:
        figures = sys.modules.get("matplotlib.figure")
        charts = sys.modules.get("e2b_charts")
        if figures is None or charts is None or not isinstance(obj, figures.Figure):
            return super().__call__(obj)
        try:
            return charts.chart_figure_to_dict(obj)
        except Exception:  # a figure that it does not understand is still a picture
            return {}


class PlainJsonFormatter(JSONFormatter):
    """Lists and dictionaries are JSON too, if all that is in them is."""

    def __call__(self, obj: Any) -> Any:
        orjson = sys.modules.get("orjson")
        if orjson is not None and isinstance(obj, list | dict):
            options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
            try:
                return orjson.loads(orjson.dumps(obj, option=options)), {"expanded": True}
            except (TypeError, ValueError):
                pass
        return super().__call__(obj)


def add_formats(display: DisplayFormatter) -> None:
    for name, kind in (
        ("e2b/data", TableFormatter),
        ("e2b/chart", ChartFormatter),
        ("application/json", PlainJsonFormatter),
    ):
        display.formatters[name] = kind(parent=display)


def call_directly(display: DisplayFormatter) -> None:
    """Let IPython's formatters be called without the signature that its decorator binds at each call: all fourteen are
    called for every result, and that was a fifth of a small cell's time. What they do about errors stays."""
    caught = catch_format_error.__wrapped__
    all_of_them = (display.ipython_display_formatter, display.mimebundle_formatter, *display.formatters.values())
    for kind in {base for one in all_of_them for base in type(one).__mro__}:
        method = vars(kind).get("__call__")
        if (plain := getattr(method, "__wrapped__", None)) is not None:
            kind.__call__ = _directly(caught, plain)  # type: ignore[method-assign]


def _directly(caught: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return caught(plain, self, *args, **kwargs)

    del call.__wrapped__  # else it would be taken for the decorator's
    return call
