"""From the name in the configuration to the object in the user's code."""

from __future__ import annotations

import importlib
import os
import random
import sys
from collections.abc import Callable
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from typing import Any

from roost.guest.faults import StartFailed, describe, stack_of

LAYER_DIR = "/opt/python"  # where Function Compute's layers keep Python packages
#: What the import system itself uses for a directory.
_LOADERS = (
    (ExtensionFileLoader, EXTENSION_SUFFIXES),
    (SourceFileLoader, SOURCE_SUFFIXES),
    (SourcelessFileLoader, BYTECODE_SUFFIXES),
)


def split_name(name: str) -> tuple[str, str]:
    """`package/module.attr` -> ("package.module", "attr"). Raises StartFailed."""
    module, dot, attribute = name.rpartition(".")
    module = module.replace("/", ".").strip(".")
    if not dot or not module or not attribute:
        raise StartFailed("HandlerNotFound", f"The handler {name!r} is not of the form 'module.function'.")
    return module, attribute


def load(name: str) -> Callable[..., Any]:
    """Import what `name` names. Raises StartFailed with the user's frames."""
    module_name, attribute = split_name(name)
    try:
        module = importlib.import_module(module_name)
    except BaseException as error:  # also a sys.exit() in the module
        missing = isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]
        kind = "ImportModuleError"
        text = "it does not exist" if missing else f"{type(error).__name__}: {describe(error)['errorMessage']}"
        raise StartFailed(kind, f"Unable to import module '{module_name}': {text}", stack_of(error)) from error
    try:
        handler = getattr(module, attribute)
    except AttributeError:
        raise StartFailed("HandlerNotFound", f"Handler '{attribute}' is missing on module '{module_name}'.") from None
    if not callable(handler):
        raise StartFailed("HandlerNotFound", f"'{attribute}' of module '{module_name}' is not callable.")
    return handler  # type: ignore[no-any-return]


def prepare_path(code: str, user_base: str) -> None:
    """Put the code first on sys.path, and after it the layers and the packages that the user's `pip` installs.

    The user-site directory gets a finder whether or not it exists: the import system would remember that it is not
    there, and a package installed by the handler could not be imported in the same session.
    """
    site = f"{user_base}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    # Forget what the zygote may have seen there. importlib.invalidate_caches() would do more than this, and import a
    # good part of the standard library for it.
    for path in (code, LAYER_DIR, site):
        sys.path_importer_cache.pop(path, None)
    added = [code, site]
    if os.path.isdir(LAYER_DIR):  # noqa: PTH112 - pathlib's many functions would each cost the new process memory
        added.insert(1, LAYER_DIR)
    if not os.path.isdir(site):  # noqa: PTH112
        sys.path_importer_cache[site] = FileFinder(site, *_LOADERS)
    sys.path[:] = added + [path for path in sys.path if path not in ("", *added)]


def reseed_random(entropy: bytes) -> bytes:
    """Give this process random numbers of its own: its memory began as a copy of another's. Returns the seed."""
    seed = entropy + os.urandom(32)
    random.seed(seed)
    return seed


def reseed(entropy: bytes) -> None:
    """The same, and NumPy's too, where it is in memory."""
    seed = reseed_random(entropy)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed([int.from_bytes(seed[i : i + 4], "little") for i in range(0, 32, 4)])
