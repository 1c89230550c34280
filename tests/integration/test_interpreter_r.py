"""R contexts, where this machine has R; elsewhere they are refused, which is tested with the other languages."""

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
    with InterpreterProcess(tmp_path_factory.mktemp("r"), ACCOUNT="mine") as process:
        yield R(process, process.context(language="r"))


if shutil.which("R"):

    def test_r_keeps_names_and_shows_visible_values(r):
        assert r("x <- 3").results == []
        assert [result["text"] for result in r("x * 2\nx").results] == ["[1] 6", "[1] 3"]
        assert r("data.frame(a = 1:2)").value == "  a\n1 1\n2 2"
        assert r('"ä \\"b\\""').value == '[1] "ä \\"b\\""'
        assert r("getwd()").value == f'[1] "{r.interpreter.home}"'

    def test_r_output_and_errors(r):
        execution = r('print("Hello"); message("oh"); system("echo sub")')
        assert (execution.text(), execution.text("stderr")) == ('[1] "Hello"\nsub\n', "oh\n")
        assert r('stop("bad")').error["value"] == "bad"
        assert "unexpected end of input" in r("x <-").error["value"]

    def test_an_r_plot_is_a_picture(r):
        [result] = r("plot(1:3)").results
        assert result["png"].startswith("iVBOR")

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
