"""The composition root: how a server is wired, how it lives, and the program that it is."""

import sys

# httpx imports its own command line wherever what that needs is installed: a tenth of a server's start, for nothing.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
