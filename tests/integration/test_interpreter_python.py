"""Python contexts: what cells show, print and raise; what is left for the next cell; what ends and interrupts them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guest import dial
from tests.support.interpreter import InterpreterProcess, data_packages


@pytest.fixture(scope="module")
def packages() -> Path:
    return data_packages()


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory, packages: Path) -> Iterator[InterpreterProcess]:
    with InterpreterProcess(tmp_path_factory.mktemp("interpreter"), packages, ACCOUNT="mine") as process:
        process.run("1")
        yield process


@pytest.fixture
def run(interpreter: InterpreterProcess):
    """Runs cells in a context of the test's own."""
    context = interpreter.context()
    yield lambda code, **fields: interpreter.run(code, context_id=context, **fields)
    interpreter.request("DELETE", f"/contexts/{context}")


def wait_until(condition, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


# -- results


def test_the_last_expression_is_the_result_and_variables_stay(run):
    first = run("x = 20\nx + 1")
    assert first.value == "21"
    assert first.lines == [
        {"type": "number_of_executions", "execution_count": 1},
        {"type": "result", "text": "21", "extra": {}, "is_main_result": True},
        {"type": "end_of_execution"},
    ]
    second = run("x = x + 1; x")
    assert (second.value, second.number) == ("21", 2)
    assert run("x;").results == []


def test_text_of_a_string_has_no_quotes(run):
    assert run("'a b'").value == "a b"
    assert run('"it\'s"').value == "it's"


def test_displays_and_output_keep_their_order(run):
    execution = run("print('a'); display(1); print('b'); display(2)\n3")
    kinds = [(line["type"], line["text"]) for line in execution.lines[1:-1]]
    assert kinds == [("stdout", "a\n"), ("result", "1"), ("stdout", "b\n"), ("result", "2"), ("result", "3")]
    assert [line["is_main_result"] for line in execution.results] == [False, False, True]


def test_representations_have_their_names(run):
    execution = run(
        """
        from IPython.display import *
        class Mine:
            def _repr_mimebundle_(self, **options):
                return {"text/plain": "t", "text/html": "h", "image/svg+xml": "s", "image/jpeg": b"j",
                        "application/pdf": b"p", "application/javascript": "js", "application/json": {"a": 1},
                        "text/markdown": "m", "text/x-mine": "x"}
        Mine()
        """
    )
    [result] = execution.results
    assert result == {
        "type": "result",
        "text": "t",
        "html": "h",
        "markdown": "m",
        "svg": "s",
        "jpeg": "ag==",
        "pdf": "cA==",
        "json": {"a": 1},
        "javascript": "js",
        "extra": {"text/x-mine": "x"},
        "is_main_result": True,
    }
    [latex] = run("display({'text/latex': r'\\text{a}'}, raw=True)").results
    assert latex == {"type": "result", "latex": r"\text{a}", "extra": {}, "is_main_result": False}


def test_lists_and_dictionaries_are_json(run):
    [result] = run("{'a': [1, None, True]}").results
    assert result["json"] == {"a": [1, None, True]}
    assert "json" not in run("{1, 2}").results[0]


def test_numbers_and_texts_are_their_text_unless_somebody_shows_them_otherwise(run):
    plain = {"type": "result", "extra": {}, "is_main_result": True}
    for code, text in (("1 + 1", "2"), ("1.5", "1.5"), ("'a'", "a"), ("b'a'", "b'a'"), ("True", "True"), ("1j", "1j")):
        assert run(code).results == [{**plain, "text": text}]
    run("formats = get_ipython().display_formatter.formatters")
    run("formats['text/html'].for_type(int, lambda n: f'<b>{n}</b>')")
    assert run("2").results == [{**plain, "text": "2", "html": "<b>2</b>"}]
    assert run("True").results == [{**plain, "text": "True", "html": "<b>True</b>"}]  # it is an int
    run("formats['text/markdown'].for_type_by_name('builtins', 'str', lambda s: f'*{s}*')")
    assert run("'a'").results == [{**plain, "text": "a", "markdown": "*a*"}]
    run("get_ipython().display_formatter.ipython_display_formatter.for_type(float, lambda f: print('shown', f))")
    assert (run("1.5").results, run("1.5").text()) == ([], "shown 1.5\n")
    run("formats['text/plain'].for_type(complex, lambda c, p, cycle: p.text('a complex'))")
    assert run("1j").results == [{**plain, "text": "a complex"}]
    assert [line["text"] for line in run("display(3, include=['text/plain'])").results] == ["3"]
    assert run("10 ** 5000").results == []  # it is too long to be printed


def test_a_table_comes_with_its_columns(run):
    [result] = run(
        "import pandas as pd\npd.DataFrame({'a': [1, 2], 'when': pd.to_datetime(['2020-01-02', None])})"
    ).results
    assert result["data"] == {"a": [1, 2], "when": ["2020-01-02T00:00:00", "NaT"]}
    assert "<table" in result["html"]
    assert result["text"].startswith("   a")


def test_a_figure_is_a_picture_with_its_data(run):
    [result] = run(
        """
        import matplotlib.pyplot as plt
        plt.plot([1, 2, 3], [4, 5, 6], label="up")
        plt.title("A line"); plt.xlabel("Time (s)")
        plt.show()
        """
    ).results
    assert result["png"].startswith("iVBOR")
    assert result["text"] == "<Figure size 640x480 with 1 Axes>"
    assert result["extra"] == {}
    assert (result["chart"]["type"], result["chart"]["title"], result["chart"]["x_unit"]) == ("line", "A line", "s")
    assert result["chart"]["elements"][0]["points"] == [[1, 4], [2, 5], [3, 6]]


def test_a_figure_that_nobody_shows_is_shown_at_the_end(run):
    results = run("import matplotlib.pyplot as plt\nplt.bar(['a', 'b'], [1, 2]);").results
    assert [result["chart"]["type"] for result in results] == ["bar"]
    assert run("1").results[0]["text"] == "1"


def test_pictures_that_are_saved_or_shown_are_results(run):
    execution = run(
        """
        from PIL import Image
        image = Image.new("RGB", (2, 2), "red")
        image.show(); image.save("red.png")
        image
        """
    )
    assert [result["png"][:5] for result in execution.results] == ["iVBOR"] * 3
    assert run("import os; os.path.exists('red.png')").value == "True"


def test_a_huge_result_is_left_out_and_the_cell_says_so(run):
    execution = run("from IPython.display import HTML\nHTML('x' * (40 << 20))")
    [result] = execution.results
    assert "html" not in result
    assert "html" in execution.text("stderr")
    assert "32 MB" in execution.text("stderr")


# -- output


def test_print_is_one_piece_and_streams_are_apart(run):
    execution = run("import sys\nprint('Hello')\nprint('Oh', file=sys.stderr)")
    assert [line["text"] for line in execution.of("stdout")] == ["Hello\n"]
    assert [line["text"] for line in execution.of("stderr")] == ["Oh\n"]
    assert all("T" in line["timestamp"] for line in execution.of("stdout"))


def test_output_of_commands_is_captured_where_they_write_it(run):
    execution = run(
        """
        import os, subprocess
        print("one"); subprocess.run("echo two; echo oh >&2", shell=True); print("three")
        os.write(1, b"four\\n")
        !echo five
        """
    )
    assert execution.text() == "one\ntwo\nthree\nfour\nfive\n"
    assert execution.text("stderr") == "oh\n"


def test_output_comes_while_the_cell_runs(interpreter):
    with interpreter.stream("print('first', end='', flush=True)\nimport time\ntime.sleep(60)") as lines:
        next(lines)
        assert next(lines)["text"] == "first"
    assert interpreter.run("'free'").value == "free"


def test_a_flood_that_nobody_reads_waits_and_costs_the_daemon_no_memory(interpreter):
    context = interpreter.context()
    with interpreter.stream("while True: print('x' * 1000)", context_id=context) as lines:
        next(lines)
        time.sleep(0.5)
        status = Path(f"/proc/{interpreter.process.pid}/status").read_text()
        assert int(status.partition("VmHWM:")[2].split()[0]) < 400_000
    assert interpreter.run("'free'", context_id=context).value == "free"


def test_ten_megabytes_of_output_arrive_whole(run):
    assert run("for i in range(10_000): print(str(i % 10) * 1023)").text() == "".join(
        f"{str(i % 10) * 1023}\n" for i in range(10_000)
    )


def test_output_between_cells_belongs_to_none(run):
    run("import threading, time\nthreading.Thread(target=lambda: [print('late') for _ in range(100_000)]).start()")
    time.sleep(0.3)
    assert run("1").value == "1"


def test_who_asks_for_input_is_told_that_nobody_answers(run):
    assert run("input('name?')").error["name"] == "StdinNotImplementedError"
    assert run("import getpass; getpass.getpass()").error["name"] == "StdinNotImplementedError"


# -- errors


def test_an_error_has_name_value_and_traceback(run):
    execution = run("def f(): return nothing\nf()")
    error = execution.error
    assert (error["name"], error["value"]) == ("NameError", "name 'nothing' is not defined")
    assert "Cell In[1], line 2" in error["traceback"]
    assert "\x1b" not in error["traceback"]
    assert execution.of("error") == [error]
    assert run("1").number == 2


def test_errors_of_syntax_and_exits_are_errors_of_the_cell(run):
    assert run("def (").error["name"] == "SyntaxError"
    assert run("import sys; sys.exit(3)").error["name"] == "SystemExit"
    assert run("exit()").error["name"] == "SystemExit"
    assert run("%nosuch").text("stderr").startswith("UsageError")
    assert run("1").value == "1"


def test_a_broken_pipe_is_an_error(run):
    assert run("import os\nr, w = os.pipe()\nos.close(r)\nos.write(w, b'x')").error["name"] == "BrokenPipeError"


def test_an_error_whose_text_fails_is_an_error(run):
    error = run("class E(Exception):\n    def __str__(self): raise ValueError\nraise E()").error
    assert error["name"] == "E"


# -- the language


def test_magics_commands_and_await(run):
    assert "ran" in run("%%bash\necho ran").text()
    assert run("import asyncio\nawait asyncio.sleep(0, 'slept')").value == "slept"
    assert run("out = !echo caught\nout").value == "['caught']"
    run("!exit 3")
    assert run("_exit_code").value == "3"
    assert run("asyncio.run(asyncio.sleep(0, 'own loop'))").value == "own loop"


def test_what_only_ipython_knows_is_found_wherever_it_is(run):
    run("def shown(*words): return words\n%autocall 0")
    for code, value in (
        ("x = %pwd\ntype(x).__name__", "str"),
        ("if True:\n    %time y = 3\ny", "3"),
        ("out = !echo a\nlist(out)", "['a']"),
        (",shown a b", "('a', 'b')"),
        (";shown a b", "('a b',)"),
        ("/shown 1", "(1,)"),
        ("1 +\\\n 1", "2"),
        ("'50 % of what?'", "50 % of what?"),
        ("    4 + 1", "5"),
        (">>> 5 + 1", "6"),
        ("len('a;b')", "3"),
    ):
        execution = run(code)
        assert (execution.error, execution.value) == (None, value), code
    assert run("7;").results == run("7; # nothing").results == []
    assert "pwd" in run("%pwd?").text() or run("%pwd?").error is None


def test_the_module_is_main_and_its_objects_can_be_pickled(run):
    run("class A: pass")
    assert run("import pickle\ntype(pickle.loads(pickle.dumps(A()))).__module__").value == "__main__"


def test_what_is_installed_can_be_imported_in_the_next_cell_and_the_same(run, interpreter):
    wheel_like = """
    import os, site, sys
    place = os.path.expanduser(f"~/.local/lib/python3.{sys.version_info[1]}/site-packages")
    os.makedirs(place, exist_ok=True)
    open(place + "/brand_new_%s.py", "w").write("x = 'installed'")
    """
    assert run(wheel_like % "a" + "import brand_new_a\n    brand_new_a.x").value == "installed"
    run(wheel_like % "b")
    assert run("import brand_new_b; brand_new_b.x").value == "installed"
    assert run("!python3 -m pip --version").text().startswith("pip ")


def test_variables_of_a_call_are_for_that_call(run):
    assert run("import os; os.getenv('FOO')", env_vars={"FOO": "bar", "ACCOUNT": "other"}).value == "bar"
    assert run("os.getenv('FOO', 'none'), os.environ['ACCOUNT']").value == "('none', 'mine')"
    assert run("!echo $ACCOUNT", env_vars={"ACCOUNT": "other"}).text() == "other\n"


def test_each_context_has_its_own_random_numbers(interpreter):
    code = "import random, numpy, uuid; (random.random(), numpy.random.random(), uuid.uuid4().hex)"
    found = {interpreter.run(code, context_id=interpreter.context()).value for _ in range(3)}
    assert len(found) == 3


def test_a_context_has_one_thread(run):
    run("import matplotlib.pyplot as plt, numpy as np\nplt.plot(np.eye(300) @ np.eye(300)); plt.show()")
    run("import asyncio\nawait asyncio.sleep(0)")
    assert run("import os; len(os.listdir('/proc/self/task'))").value == "1"


def test_a_fork_of_user_code_is_no_context(run):
    execution = run("import os\npid = os.fork()\ndisplay('who')\nif pid: print(os.waitpid(pid, 0)[1])")
    assert execution.text() == "0\n"
    assert [result["text"] for result in execution.results] == ["who"]
    pool = "import multiprocessing as m\nwith m.get_context('fork').Pool(2) as pool: print(pool.map(abs, [-1, -2]))"
    assert run(pool).text() == "[1, 2]\n"


# -- the end of cells and contexts


@pytest.mark.parametrize(
    "code",
    [
        "import time\nprint('on', flush=True)\ntime.sleep(300)",
        "print('on', flush=True)\nwhile True: pass",
        "print('on', flush=True)\n!sleep 300",
        "print('on', flush=True)\nimport asyncio\nawait asyncio.sleep(300)",
    ],
)
def test_a_dropped_connection_interrupts_the_cell_and_the_variables_stay(interpreter, code):
    context = interpreter.context()
    interpreter.run("x = 'kept'", context_id=context)
    with interpreter.stream(code, context_id=context) as lines:
        while next(lines).get("text") != "on\n":
            pass
    assert interpreter.run("x", context_id=context).value == "kept"


def test_a_cell_that_takes_no_interrupts_ends_with_its_process_and_who_waits_is_told(interpreter):
    context = interpreter.context()
    stubborn = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('on')\nwhile True: pass"
    with interpreter.stream(stubborn, context_id=context) as lines:
        while next(lines).get("text") != "on\n":
            pass
    error = interpreter.run("1", context_id=context).error
    assert error["name"] == "ContextRestarting"
    assert "could not be interrupted" in error["value"]
    assert interpreter.run("1", context_id=context).value == "1"


def test_long_silence_is_kept_alive(run):
    assert {"type": "keepalive"} in run("import time; time.sleep(5.5)").lines


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; print('last words'); os._exit(3)", "exit code 3"),
        ("import os, signal; print('last words'); os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
        ("import ctypes; print('last words'); ctypes.string_at(0)", "signal 11"),
    ],
)
def test_a_context_that_kills_its_interpreter_is_restarted_with_an_error(interpreter, code, reason):
    context = interpreter.context()
    interpreter.run("x = 1", context_id=context)
    execution = interpreter.run(code, context_id=context)
    assert execution.text() == "last words\n"
    assert execution.error["name"] == "ContextRestarting"
    assert reason in execution.error["value"]
    after = interpreter.run("x", context_id=context)
    assert (after.error["name"], after.number) == ("NameError", 1)
    assert interpreter.run("'default lives'").value == "default lives"


def test_a_context_that_dies_between_cells_says_so_once(interpreter):
    context = interpreter.context()
    pid = int(interpreter.run("import os; os.getpid()", context_id=context).value)
    os.kill(pid, 9)
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    assert interpreter.run("1", context_id=context).error["name"] == "ContextRestarting"
    assert interpreter.run("1", context_id=context).value == "1"


@pytest.mark.parametrize("nonsense", ["b'garbage that is no frame'", "b'R 99999999999\\\\n'", "b'D 2\\\\n{}'"])
def test_a_context_that_breaks_the_protocol_ends(interpreter, nonsense):
    context = interpreter.context()
    execution = interpreter.run(
        f"import os; os.write(3, {nonsense}.replace(b'\\\\n', b'\\n'))\nimport time; time.sleep(60)", context_id=context
    )
    assert execution.error["name"] == "ContextRestarting"
    assert interpreter.run("1", context_id=context).value == "1"


def test_cells_of_one_context_take_turns(interpreter):
    context = interpreter.context()
    results: dict[int, str | None] = {}

    def call(number: int) -> None:
        code = f"import time\nt = {number}\ntime.sleep(0.02)\nt"
        results[number] = interpreter.run(code, context_id=context).value

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: str(number) for number in range(8)}


# -- contexts


def test_contexts_are_apart_listed_and_removed(interpreter):
    first, second = interpreter.context(), interpreter.context(cwd="/tmp")
    interpreter.run("x = 1", context_id=first)
    assert interpreter.run("x", context_id=second).error["name"] == "NameError"
    assert interpreter.run("import os; os.getcwd()", context_id=second).value == "/tmp"
    listed = json.loads(interpreter.request("GET", "/contexts")[2])
    assert listed[0] == {"id": listed[0]["id"], "language": "python", "cwd": str(interpreter.home)}
    assert listed[-1] == {"id": second, "language": "python", "cwd": "/tmp"}
    assert interpreter.request("DELETE", f"/contexts/{second}")[::2] == (200, b"null")
    assert second not in [each["id"] for each in json.loads(interpreter.request("GET", "/contexts")[2])]
    assert interpreter.request("DELETE", f"/contexts/{second}")[::2] == (404, f"Context {second} not found".encode())


def test_a_restart_forgets_and_ends_what_runs(interpreter):
    context = interpreter.context()
    interpreter.run("x = 1", context_id=context)
    with interpreter.stream("print('on')\nwhile True: pass", context_id=context) as lines:
        while next(lines).get("text") != "on\n":
            pass
        assert interpreter.request("POST", f"/contexts/{context}/restart")[::2] == (200, b"null")
        [error, end] = list(lines)
    assert (error["name"], end["type"]) == ("ContextRestarting", "end_of_execution")
    assert interpreter.run("x", context_id=context).error["name"] == "NameError"


def test_removing_a_context_ends_its_cell_and_its_processes(interpreter):
    context = interpreter.context()
    with interpreter.stream("!echo $$; sleep 300", context_id=context) as lines:
        next(lines)
        pid = int(next(lines)["text"])
        interpreter.request("DELETE", f"/contexts/{context}")
        assert [line.get("name") for line in lines] == ["UnexpectedEndOfExecution", None]
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_refusals(interpreter):
    def post(target, body):
        return interpreter.request("POST", target, body)[::2]

    assert post("/execute", {"code": "1", "context_id": "nope"}) == (404, b"Context nope not found")
    assert post("/execute", {"code": "1", "context_id": "a", "language": "python"}) == (
        400,
        b"Only one of context_id or language can be provided",
    )
    status, body = post("/execute", {"code": "1", "language": "cobol"})
    assert status == 500
    assert b"no kernel for the language 'cobol'" in body
    status, body = post("/contexts", {"cwd": "/nowhere"})
    assert (status, body) == (500, b"Failed to create context: /nowhere: No such file or directory")
    assert post("/execute", b"{")[0] == 422
    assert post("/execute", {})[0] == 422
    assert post("/contexts/nope/restart", None) == (404, b"Context nope not found")
    assert interpreter.request("GET", "/execute")[0] == 405
    assert interpreter.request("GET", "/nothing")[::2] == (404, b'{"detail": "Not Found"}')
    assert interpreter.request("GET", "/health")[::2] == (200, b'"OK"')


def test_code_that_is_too_large_is_refused_before_it_comes(interpreter):
    with contextlib.closing(dial(interpreter.path)) as sock:
        sock.sendall(b"POST /execute HTTP/1.1\r\nhost: a\r\ncontent-length: 17000000\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_pages_of_other_origins_may_ask(interpreter):
    status, fields, _ = interpreter.request(
        "OPTIONS", "/execute", origin="http://a.example", access_control_request_headers="x-access-token"
    )
    assert (status, fields["access-control-allow-origin"]) == (200, "*")
    assert fields["access-control-allow-headers"] == "x-access-token"
    assert interpreter.request("GET", "/health", origin="http://a.example")[1]["access-control-allow-origin"] == "*"


def test_there_are_so_many_contexts_and_no_more(interpreter, packages, tmp_path):
    with InterpreterProcess(tmp_path, packages) as crowded:
        made = 1
        while (answer := crowded.request("POST", "/contexts", {}))[0] == 200:
            made += 1
        assert made <= 129
        assert b"no more can be" in answer[2]
        assert crowded.run("'still here'").value == "still here"


def test_without_ipython_a_python_context_says_what_is_missing(tmp_path):
    with InterpreterProcess(tmp_path) as process:
        error = process.run("1").error
        assert error["name"] == "ContextNotStarted"
        assert "IPython" in error["value"]
        assert process.request("GET", "/health")[0] == 200


def test_a_context_starts_with_nothing_of_what_warmed_it(run):
    assert (
        run("[name for name in dir() if not name.startswith('_')]").value
        == "['In', 'Out', 'exit', 'get_ipython', 'open', 'quit']"
    )
    assert run("import matplotlib.pyplot as plt; plt.get_fignums()").value == "[]"


def test_megabytes_of_code_arrive_whole(run):
    text = "ä\\x00'\"" * 500_000
    assert run(f"x = {text!r}\nlen(x)").value == str(len(text))


def test_a_context_that_does_not_read_its_cell_holds_up_nobody(interpreter):
    context = interpreter.context()
    pid = int(interpreter.run("import os; os.getpid()", context_id=context).value)
    os.kill(pid, signal.SIGSTOP)
    with interpreter.stream("x = '" + "x" * (4 << 20) + "'", context_id=context) as lines:
        next(lines)
        assert interpreter.run("'others run'").value == "others run"
        assert interpreter.request("POST", f"/contexts/{context}/restart")[0] == 200
        assert [line.get("name") for line in lines] == ["ContextRestarting", None]
    assert interpreter.run("1", context_id=context).value == "1"
