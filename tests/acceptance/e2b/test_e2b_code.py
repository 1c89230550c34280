"""Code in sandboxes, as the official code interpreter SDK runs it, in the rooms of a real server."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from e2b import CommandExitException, NotFoundException, TimeoutException
from e2b_code_interpreter import Sandbox

from tests.support.interpreter import data_packages
from tests.support.server import Server, share_packages


@pytest.fixture(scope="module", autouse=True)
def packages(roost: Server) -> None:
    share_packages(roost.data_dir, data_packages())


@pytest.fixture
def sandbox(environment: None) -> Iterator[Sandbox]:
    made = Sandbox.create(timeout=120)
    yield made
    made.kill()


def test_the_first_five_lines_of_every_tutorial(sandbox: Sandbox) -> None:
    assert sandbox.run_code("x = 20; x + 1").text == "21"
    assert sandbox.run_code("x * 2").text == "40"
    sandbox.files.write("data.csv", "a,b\n1,2\n3,4\n")
    table = sandbox.run_code("import pandas as pd; pd.read_csv('data.csv')")
    assert table.error is None, table.error
    assert "html" in table.results[0].formats()
    assert sandbox.commands.run("whoami && pwd").stdout == "user\n/home/user\n"


def test_a_figure_comes_as_a_picture_and_as_data(sandbox: Sandbox) -> None:
    plot = "import matplotlib.pyplot as plt; plt.plot([1, 2, 3]); plt.title('up'); plt.show()"
    [result] = sandbox.run_code(plot).results
    assert result.png
    assert result.chart is not None
    assert result.chart.title == "up"


def test_an_error_has_its_name_and_the_context_lives_on(sandbox: Sandbox) -> None:
    failed = sandbox.run_code("kept = 1\n1 / 0")
    assert failed.error is not None
    assert failed.error.name == "ZeroDivisionError"
    assert sandbox.run_code("kept").text == "1"


def test_output_comes_while_it_is_made_and_a_limit_of_time_interrupts(sandbox: Sandbox) -> None:
    seen: list[str] = []
    with pytest.raises(TimeoutException):
        sandbox.run_code(
            "import time\nprint('begun', flush=True)\nwhile True: time.sleep(0.01)",
            on_stdout=lambda message: seen.append(message.line),
            timeout=2,
        )
    assert "".join(seen).strip() == "begun"
    assert sandbox.run_code("'free again'").text == "free again"


@pytest.mark.parametrize(
    ("language", "code", "printed"),
    [
        ("javascript", "const a = [1, 2, 3]; console.log(a.map(x => x * 2).join())", "2,4,6"),
        ("typescript", "const n: number = 41; console.log(n + 1)", "42"),
        ("bash", "echo $((6 * 7))", "42"),
        ("r", "cat(6 * 7)", "42"),
    ],
)
def test_other_languages(sandbox: Sandbox, language: str, code: str, printed: str) -> None:
    done = sandbox.run_code(code, language=language)
    assert done.error is None, done.error
    assert "".join(done.logs.stdout).strip() == printed


def test_values_of_r_its_tables_and_plots(sandbox: Sandbox) -> None:
    sandbox.run_code("x <- data.frame(a = 1:2)", language="r")
    assert sandbox.run_code("median(x$a)", language="r").text == "[1] 1.5"  # all that R has from its start
    done = sandbox.run_code("plot(x)\nx", language="r")
    assert done.error is None, done.error
    table = next(result for result in done.results if result.is_main_result)
    assert (table.text, "html" in table.formats()) == ("  a\n1 1\n2 2", True)
    assert [result for result in done.results if result.png]


def test_contexts_do_not_share_their_variables(sandbox: Sandbox) -> None:
    one = sandbox.create_code_context(cwd="/tmp")
    two = sandbox.create_code_context()
    sandbox.run_code("mine = 1", context=one)
    assert sandbox.run_code("'mine' in globals()", context=two).text == "False"
    assert sandbox.run_code("import os; os.getcwd()", context=one).text == "/tmp"
    sandbox.remove_code_context(two)
    with pytest.raises(NotFoundException):
        sandbox.run_code("1", context=two)


def test_the_packages_of_contexts_and_of_commands_are_the_same(sandbox: Sandbox) -> None:
    inside = sandbox.run_code("import sys, numpy; (sys.executable, numpy.__version__)").text
    command = "import sys, numpy; print((sys.executable, numpy.__version__))"
    assert sandbox.commands.run(f"python3 -c '{command}'").stdout.strip() == inside


def test_a_paused_sandbox_has_its_variables_when_it_is_connected_to_again(sandbox: Sandbox) -> None:
    sandbox.run_code("kept = [1, 2]")
    sandbox.pause()
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.run_code("kept + [3]").text == "[1, 2, 3]"


def test_what_eats_the_memory_ends_and_the_sandbox_lives(sandbox: Sandbox) -> None:
    eaten = sandbox.run_code("x = bytearray(3 << 30)")
    assert eaten.error is not None
    assert sandbox.commands.run("echo alive").stdout.strip() == "alive"
    assert sandbox.run_code("1 + 1").text == "2"
    with pytest.raises(CommandExitException):
        sandbox.commands.run("python3 -c 'x = bytearray(3 << 30)'")
    assert sandbox.is_running()


def test_a_sandbox_is_another_world_for_others() -> None:
    one, two = Sandbox.create(timeout=60), Sandbox.create(timeout=60)
    results: dict[str, str | None] = {}

    def work(name: str, sandbox: Sandbox) -> None:
        sandbox.files.write("/tmp/name", name)
        results[name] = sandbox.run_code(f"name = {name!r}; open('/tmp/name').read() + name").text

    threads = [threading.Thread(target=work, args=pair) for pair in (("one", one), ("two", two))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {"one": "oneone", "two": "twotwo"}
    one.kill()
    assert two.is_running()
    two.kill()
