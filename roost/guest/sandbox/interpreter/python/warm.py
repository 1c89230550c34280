"""Imported ahead, by a template's zygote: all that Python contexts share from then on.

What contexts use at their first figure, table or error is used once here, so that it is not read, compiled and laid out
in each of them anew. Of the libraries only IPython must be there.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import sys
from typing import Any

from roost.guest.sandbox.interpreter.python.shell import Shell, make_shell

#: A BLAS library starts its threads when it is loaded; a context has one thread until user code starts more.
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_LIBRARIES = (
    "numpy",
    "numpy.random",
    "orjson",
    "pandas",
    "PIL.Image",
    "PIL.ImageShow",
    "PIL.PngImagePlugin",
    "matplotlib",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
    "matplotlib.dates",
    "matplotlib_inline.backend_inline",
    "mpl_toolkits",
    "e2b_charts",
    "IPython.display",
)
_FIGURE = """
import matplotlib.pyplot as plt
plt.plot([1, 2], label="a")
plt.title("a")
plt.legend()
plt.show()
"""
_TABLE = """
import pandas
pandas.DataFrame({"a": [1, 2]})
"""
_ERROR = "1 / 0"
_AWAIT = "import asyncio\nawait asyncio.sleep(0)"
_CELLS = ("1", _TABLE, _FIGURE, _ERROR, _AWAIT)
_OFTEN = 10  # so that the interpreter has adapted the code that every cell runs, and writes to it no more


def warm() -> Shell:
    """Import the libraries and make this process's shell, as if nothing had run in it yet."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    main = sys.modules["__main__"]
    hook = sys.displayhook
    try:
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
        for name in _LIBRARIES:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        shell = make_shell()
        _adapt_libraries(shell)
        _use(shell)
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        sys.modules["__main__"] = main
        sys.displayhook = hook
    _forget_fonts()
    gc.collect()
    return shell


def _adapt_libraries(shell: Shell) -> None:
    """Figures are shown by `plt.show()` and at the end of a cell; a picture that is saved is shown too, as E2B does."""
    inline = sys.modules.get("matplotlib_inline.backend_inline")
    matplotlib = sys.modules.get("matplotlib")
    if inline is not None and matplotlib is not None:
        backend = "module://matplotlib_inline.backend_inline"
        matplotlib.use(backend)
        importlib.import_module("IPython.core.pylabtools").activate_matplotlib(backend)
        inline.configure_inline_support(shell, backend)
    if "PIL.ImageShow" in sys.modules:
        _adapt_pictures()


def _forget_fonts() -> None:
    """An open font is of no use in a fork: matplotlib closes it there, which would cost each of them memory."""
    fonts = sys.modules.get("matplotlib.font_manager")
    cached: Any = getattr(fonts, "_get_font", None)
    if hasattr(cached, "cache_clear"):
        cached.cache_clear()


def _adapt_pictures() -> None:
    image: Any = sys.modules["PIL.Image"].Image
    display = importlib.import_module("IPython.display").display
    sys.modules["PIL.ImageShow"].UnixViewer.show_file = lambda *_, **__: 0  # there is no screen
    save = image.save

    def save_and_show(self: Any, fp: Any, format: str | None = None, **options: Any) -> None:
        if isinstance(fp, str):
            display(self)
        save(self, fp, format, **options)

    image.save = save_and_show


def _use(shell: Shell) -> None:
    """Run what contexts run; nobody sees its results."""
    streams = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        try:
            for cell in (*_CELLS, *["1"] * _OFTEN):
                shell.run_cell(cell, store_history=True)
        finally:
            sys.stdout, sys.stderr = streams
    shell.forget_cells()


SHELL = warm()
