"""How long inputs are tried."""

from __future__ import annotations

import os

from hypothesis import settings

if "FUZZ_CASES" in os.environ:
    settings.register_profile("fuzz", settings.get_profile("roost"), max_examples=int(os.environ["FUZZ_CASES"]))
    settings.load_profile("fuzz")
