"""Every test and benchmark that the specification and docs/security.md name exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "spec" / "SPECIFICATION.md").read_text()
SECURITY = (ROOT / "docs" / "security.md").read_text()
REFERENCES = sorted(set(re.findall(r"`((?:tests|bench)/[\w/]+\.py)(?:::(\w+))?`", TEXT + SECURITY)))


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_what_holds_a_promise_exists() -> None:
    missing = [
        f"{path}::{name}" if name else path
        for path, name in REFERENCES
        if not (ROOT / path).is_file() or (name and name not in functions(ROOT / path))
    ]
    assert missing == []
    assert len(REFERENCES) > 20


def test_every_promise_names_what_holds_it() -> None:
    promises = TEXT[: TEXT.index("## What is not promised")]
    rows = [row for row in promises.splitlines() if row.startswith("| ") and not row.endswith("held by |")]
    assert [row for row in rows if not re.search(r"`(tests|bench)/", row)] == []
    assert len(rows) > 30


def test_every_attack_names_the_test_that_tries_it() -> None:
    tried = SECURITY[SECURITY.index("## What is tried") : SECURITY.index("## What is not there yet")]
    rows = [row for row in tried.splitlines() if row.startswith("| ") and not row.endswith("Test |")]
    assert [row for row in rows if not re.search(r"`tests/", row)] == []
    assert len(rows) > 30


def test_every_attack_of_the_list_is_tried_or_can_not_be() -> None:
    listed = SECURITY[SECURITY.index("## All of it, by number") :]
    rows = [row.split(" | ") for row in listed.splitlines() if re.match(r"\| \d", row)]
    assert [int(row[0].removeprefix("| ")) for row in rows] == list(range(1, 94))
    assert [
        row for row in rows if not re.search(r"`tests/[\w/]+\.py::\w+`", row[2]) and "Does not apply: " not in row[2]
    ] == []
