"""Java contexts, where this machine has a JDK; elsewhere they are refused, which is tested with the other languages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.interpreter import Execution, InterpreterProcess


@dataclass
class Java:
    """One context."""

    interpreter: InterpreterProcess
    context: str

    def __call__(self, code: str, **fields: Any) -> Execution:
        return self.interpreter.run(code, context_id=self.context, **fields)


@pytest.fixture(scope="module")
def java(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Java]:
    with InterpreterProcess(tmp_path_factory.mktemp("java"), ACCOUNT="mine") as process:
        yield Java(process, process.context(language="java"))


if shutil.which("jshell"):

    def test_java_keeps_names_and_has_values(java):
        java("int x = 3; int square(int a) { return a * a; }\nclass A { int z = 5; }")
        assert java("square(x) + new A().z").value == "14"
        assert java('"a\\n\\"b\\""').value == 'a\n"b"'
        assert java("x = 4; void f() {}").results == []
        assert java("List.of(1, x).stream().map(a -> a * 2).collect(Collectors.toList())").value == "[2, 8]"
        assert java('System.getProperty("user.dir")').value == str(java.interpreter.home)

    def test_java_output_has_the_ends_of_lines_apart(java):
        execution = java('System.out.println("Hello"); System.err.print("oh");')
        assert [line["text"] for line in execution.of("stdout")] == ["Hello", "\n"]
        assert execution.text("stderr") == "oh"

    def test_java_errors(java):
        error = java('throw new IllegalStateException("bad");').error
        assert (error["name"], error["value"]) == ("IllegalStateException", "bad")
        assert java('int y = "s";').error["name"] == "CompilationException"
        assert java("if (").error["name"] == "CompilationException"

    def test_variables_of_a_java_call_are_properties(java):
        code = 'System.getProperty("FOO", "none") + System.getProperty("ACCOUNT")'
        assert java(code, env_vars={"FOO": "bar", "ACCOUNT": "other"}).value == "barother"
        assert java(code).value == "nonemine"

    def test_java_is_interrupted_and_restarted(java):
        java("int kept = 4;")
        with java.interpreter.stream('System.out.println("on"); while (true) {}', context_id=java.context) as lines:
            while next(lines).get("text") != "on":
                pass
        assert java("kept").value == "4"
        assert "exit code 3" in java("System.exit(3);").error["value"]
        assert java("kept").error["name"] == "CompilationException"
