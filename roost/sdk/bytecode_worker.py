"""Compiles Python files. Run by path in a bare interpreter: standard library only.

Standard input: one line of JSON a file, [source, place of the bytecode, name of the source in the room], in the order
in which they are compiled. The bytecode carries a hash of its source that is not checked, instead of a time. What can't
be compiled is passed over: packages hold templates and tests of syntax errors, and an import says it better.
"""

from __future__ import annotations

import json
import py_compile
import sys
import warnings


def main() -> None:
    """Compile what standard input lists."""
    warnings.simplefilter("ignore")  # about other people's code
    for line in sys.stdin:
        source, target, name = json.loads(line)
        try:
            py_compile.compile(
                source, target, name, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
            )
        except OSError:
            raise  # the disk is full, or the like
        except Exception:  # noqa: S112 - also null bytes, too deep nesting and unknown encodings
            continue


if __name__ == "__main__":
    main()
