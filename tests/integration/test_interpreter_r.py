"""R contexts. Where the machine has no R they are refused, which is tested with the other languages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.interpreter import Execution, InterpreterProcess


@dataclass
class R:
    """One context."""

    interpreter: InterpreterProcess
    context: str

    def __call__(self, code: str, **fields: Any) -> Execution:
        return self.interpreter.run(code, context_id=self.context, **fields)


@pytest.fixture(scope="module")
def r(tmp_path_factory: pytest.TempPathFactory) -> Iterator[R]:
    assert shutil.which("R"), "These tests run R: apt-get install r-base-core."
    with InterpreterProcess(tmp_path_factory.mktemp("r"), ACCOUNT="mine") as process:
        yield R(process, process.context(language="r"))


def test_r_keeps_names_and_shows_visible_values(r):
    assert r("x <- 3").results == []
    assert [result["text"] for result in r("x * 2\nx").results] == ["[1] 6", "[1] 3"]
    [frame] = r('data.frame(a = 1:2, b = c("<x>", NA))').results
    assert frame["text"] == "  a    b\n1 1  <x>\n2 2 <NA>"
    assert "<tr><th>2</th><td>2</td><td>NA</td></tr></table>" in frame["html"] and "&lt;x>" in frame["html"]
    assert "html" not in r("data.frame()").results[0]
    assert r("data.frame(a = 1:1e5)").results[0]["html"].count("<tr>") == 61
    assert r('"ä \\"b\\""').value == '[1] "ä \\"b\\""'
    assert r("getwd()").value == f'[1] "{r.interpreter.home}"'


def test_r_output_and_errors(r):
    execution = r('print("Hello"); message("oh"); system("echo sub")')
    assert (execution.text(), execution.text("stderr")) == ('[1] "Hello"\nsub\n', "oh\n")
    assert r('stop("bad")').error["value"] == "bad"
    assert "unexpected end of input" in r("x <-").error["value"]
    assert r('stop("bad")').error["traceback"] == 'Error: bad\n1. stop("bad")'
    deep = r('f <- function() stop("deep")\ng <- function(x) f()\ng("ü")').error
    assert deep["traceback"] == 'Error in f(): deep\n1. g("ü")\n2. f()\n3. stop("deep")'
    assert (
        r('warning("oh"); f <- function() warning("far"); f()').text("stderr") == "Warning: oh\nWarning in f() : far\n"
    )
    assert r('options(warn = 2); warning("oh")').error["value"] == "(converted from warning) oh"
    assert r("options(warn = 1L); sqrt(-1)").value == "[1] NaN"


def test_an_r_plot_is_a_picture(r):
    [result] = r("plot(1:3)").results
    assert result["png"].startswith("iVBOR")
    assert len(r("plot(1:3); plot(3:1)").results) == 2
    failed = r('plot(1:3); stop("bad")')
    assert len(failed.results) == 1 and failed.error is not None
    assert r("invisible(1)").results == []  # not the one before


def test_variables_of_an_r_call(r):
    code = 'c(Sys.getenv("FOO", unset = "none"), Sys.getenv("ACCOUNT"))'
    assert r(code, env_vars={"FOO": "it's\nnew", "ACCOUNT": "other"}).value == '[1] "it\'s\\nnew" "other"    '
    assert r(code).value == '[1] "none" "mine"'


@pytest.mark.parametrize("code", ["repeat {}", "Sys.sleep(300)"])
def test_r_is_interrupted(r, code):
    r("kept <- 4")
    with r.interpreter.stream(f'cat("on\\n"); {code}', context_id=r.context) as lines:
        while next(lines).get("text") != "on\n":
            pass
    assert r("kept").value == "[1] 4"


def test_r_that_ends_is_restarted(r):
    assert "exit code 3" in r("quit(status = 3)").error["value"]
    assert r("1").value == "[1] 1"
