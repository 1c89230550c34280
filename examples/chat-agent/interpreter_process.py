"""The process behind `Interpreter`: reads `[code, end marker]` lines; after each one's output it writes the marker."""

import ast
import importlib
import json
import linecache
import os
import signal
import sys
import traceback
from typing import Any


def main(packages: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = os.fdopen(os.dup(0))
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)  # code that reads its input gets the end of a file, not our requests
    sys.path[0] = ""
    sys.path.append(packages)
    names = {"__name__": "__main__", "__builtins__": __builtins__}
    for number, line in enumerate(requests, 1):
        code, end = json.loads(line)
        importlib.invalidate_caches()  # a package may have been installed since
        try:
            run(code, f"<call {number}>", names)
        except KeyboardInterrupt:
            print("KeyboardInterrupt")
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(1, end.encode())


def run(code: str, file: str, names: dict[str, Any]) -> None:
    """Run code like a cell of a notebook: the value of a last expression is shown."""
    linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)
    try:
        tree = ast.parse(code, file)
        last = tree.body[-1] if tree.body else None
        if isinstance(last, ast.Expr):
            tree.body.pop()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        exec(compile(tree, file, "exec"), names)
        if isinstance(last, ast.Expr):
            sys.displayhook(eval(compile(ast.Expression(last.value), file, "eval"), names))
    except SystemExit as error:
        print(f"SystemExit: {error.code}")
    except BaseException as error:
        sys.stdout.flush()
        own_frames = 0 if isinstance(error, SyntaxError) else 1
        stack = error.__traceback__
        for _ in range(own_frames):
            stack = stack.tb_next if stack else None
        traceback.print_exception(type(error), error, stack if own_frames else None)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main(sys.argv[1])
