"""What ``./test`` makes of failures: what failed runs once more, alone, and nothing that fails twice is hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.parts import CLOSING, NodePart, PytestPart, left_in, run_parts, summary
from support.rows import rows_of_a_test

#: How the workers of xdist are asked for where no plugin is loaded by itself.
WORKERS = ("-p", "xdist", "-n", "1")
#: Fails while the file beside it, named after the test, is not there, which its first run makes.
ONCE = """
    import pathlib
    seen = pathlib.Path(__file__).with_name({name!r})
    first = not seen.exists()
    seen.touch()
    assert not first
"""
NODE_ONCE = """
test({name!r}, () => {{
    const seen = new URL(encodeURIComponent({name!r}), import.meta.url);
    const first = !existsSync(seen);
    writeFileSync(seen, "");
    assert(!first);
}});
"""
NODE_HEAD = """
import test from "node:test";
import assert from "node:assert";
import { existsSync, writeFileSync } from "node:fs";
"""


def good(name: str) -> str:
    return f"def {name}(): pass\n"


def bad(name: str) -> str:
    return f"def {name}(): assert False\n"


def once(name: str) -> str:
    return f"def {name}():{ONCE.format(name=name)}\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``run(files, …)`` runs a suite of its own; its results, the failures and the last lines."""
    # The plugins of zComm's suite take a second to load.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)

    def run(files: dict[str, str], *arguments: str, beside: tuple[str, ...] = ()) -> tuple[Any, list[str], list[str]]:
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        scripts = sorted(name for name in files if name.endswith(".js"))
        tests = sorted(name for name in files if name.startswith("test_"))
        parts: list[Any] = []
        if scripts:
            (tmp_path / "package.json").write_text('{"type": "module"}')
            parts.append(NodePart("scripts", scripts, work=tmp_path, cwd=tmp_path))
        if tests:
            parts.append(PytestPart("tests", tests, arguments, beside, work=tmp_path, cwd=tmp_path))
        results, failures = run_parts(parts)
        return results, failures, summary(parts, results, failures)

    return run


def test_when_all_pass_nothing_runs_again(run, capfd):
    """The last line is pytest's own."""
    _, failures, lines = run({"test_a.py": good("test_one") + good("test_two")})
    assert failures == []
    assert len(lines) == 2 and lines[-1].startswith("2 passed in ")
    assert "once more" not in capfd.readouterr().out


@pytest.mark.parametrize("beside", [(), WORKERS], ids=["one process", "workers"])
def test_what_fails_once_is_flaky(run, capfd, beside):
    """It is named, the numbers are those after the second run, and nothing failed."""
    _, failures, lines = run(
        {
            "test_a.py": "import pytest\n"
            + good("test_one")
            + once("test_two")
            + '@pytest.mark.skip("not here")\n'
            + bad("test_three")
        },
        beside=beside,
    )
    assert failures == []
    assert lines[-2:] == ["flaky: test_a.py::test_two", "2 passed, 0 failed, 1 skipped"]
    assert "what failed once more, alone" in capfd.readouterr().out


def test_what_fails_twice_has_failed(run):
    """Beside a flaky one, too."""
    _, failures, lines = run({"test_a.py": bad("test_one") + once("test_two")})
    assert failures == ["tests: test_a.py::test_one"]
    assert lines[1:] == [
        "FAILED: tests: test_a.py::test_one",
        "flaky: test_a.py::test_two",
        "1 passed, 1 failed, 0 skipped",
    ]


@pytest.mark.parametrize(("number", "failed"), [(3, 0), (4, 4)])
def test_more_than_three_flaky_ones_are_a_failure(run, number, failed):
    """All are listed; above three they count as failed."""
    _, failures, lines = run({"test_a.py": "".join(once(f"test_{index}") for index in range(number))})
    assert failures == (["4 flaky tests, more than 3"] if failed else [])
    assert [line for line in lines if line.startswith("flaky: ")] == [
        f"flaky: test_a.py::test_{index}" for index in range(number)
    ]
    assert lines[-1] == f"{number - failed} passed, {failed} failed, 0 skipped"


def test_only_what_failed_runs_again(run, tmp_path):
    """And with parameters, in classes, and when it was the set-up or the teardown that failed."""
    run(
        {
            "test_a.py": f"""
import pathlib, pytest
def count(name):
    with pathlib.Path(__file__).with_name("runs").open("a") as runs:
        runs.write(name + chr(10))
def once(name):{ONCE.format(name="any").replace("'any'", "name")}
@pytest.fixture
def starts():
    once("starts")
@pytest.fixture
def ends():
    yield
    once("ends")
def test_good(): count("good")
class TestIt:
    @pytest.mark.parametrize("value", ["a b", "x::y[z]", "ü"])
    def test_value(self, value):
        count(value)
        once(value.encode().hex())
def test_setup(starts): count("setup")
def test_teardown(ends): count("teardown")
"""
        }
    )
    runs = (tmp_path / "runs").read_text().splitlines()
    assert sorted(runs) == sorted(["good", *["a b", "x::y[z]", "ü"] * 2, "setup", "teardown", "teardown"])


def test_a_file_that_cannot_be_collected_is_a_failure(run):
    """Nothing about it runs again."""
    for beside in ((), WORKERS):
        _, failures, lines = run(
            {"test_a.py": good("test_one"), "test_b.py": "import nothing_of_the_kind\n"}, beside=beside
        )
        assert any("test_b.py (cannot be collected)" in line for line in failures), failures
        assert lines[-1].endswith(" 0 failed, 0 skipped")


def test_a_process_that_dies_is_a_failure(run):
    """With workers, one of which is replaced, and without."""
    dies = "import os\ndef test_dies(): os._exit(7)\n"
    _, failures, _ = run({"test_a.py": good("test_one") + dies}, beside=WORKERS)
    assert failures == ["tests: test_a.py::test_dies (its process died)"]
    _, failures, lines = run({"test_a.py": good("test_one") + dies})
    assert failures == ["tests: pytest did not end", "tests: pytest ended with status 7"]
    assert lines[-1] == "0 passed, 0 failed, 0 skipped"


def test_a_process_that_dies_in_the_second_run_is_a_failure(run):
    """What it did not come to has failed twice."""
    text = "import os, pathlib\ndef test_dies():\n    seen = pathlib.Path(__file__).with_name('seen')\n"
    text += "    if seen.exists(): os._exit(7)\n    seen.touch()\n    assert False\n"
    _, failures, lines = run({"test_a.py": text})
    assert failures[-1] == "tests: test_a.py::test_dies" and "once more" in failures[0]
    assert lines[-1] == "0 passed, 1 failed, 0 skipped"


@pytest.mark.parametrize("arguments", [("--no-such-option",), ("-k", "nothing")])
def test_another_status_of_pytest_is_a_failure(run, arguments):
    """A wrong command line, and no test at all."""
    _, failures, _ = run({"test_a.py": good("test_one")}, *arguments)
    assert len(failures) == 1 and failures[0].startswith("tests: pytest ended with status ") or failures


def test_node_runs_the_files_of_what_failed_again(run):
    """Each sort of Node test: good, failing once, failing twice; tests in tests, two of one name."""
    nested = 'test("outer", async (t) => { await t.test("inner", () => assert(false)); });\n'
    twins = 'test("twin", () => {});\ntest("twin", () => assert(false));\n'
    results, failures, lines = run(
        {
            "a.test.js": NODE_HEAD
            + 'test("good", () => {});\ntest.skip("later", () => {});\n'
            + NODE_ONCE.format(name="once"),
            "b.test.js": NODE_HEAD + nested + twins,
        }
    )
    assert failures == ["scripts: b.test.js::inner", "scripts: b.test.js::twin #2"]
    assert lines[-2:] == ["flaky: a.test.js::once", "3 passed, 2 failed, 1 skipped"]


def test_a_script_that_does_not_load_or_dies_is_a_failure(run):
    """Though its tests passed."""
    _, failures, _ = run({"a.test.js": "throw new Error();\n", "b.test.js": NODE_HEAD + "process.exitCode = 3;\n"})
    assert [line.partition(" (")[0] for line in failures] == ["scripts: a.test.js", "scripts: b.test.js"]


def test_flaky_ones_of_all_parts_count(run):
    """Two here and two there are four."""
    script = NODE_HEAD + NODE_ONCE.format(name="one") + NODE_ONCE.format(name="two")
    _, failures, lines = run({"a.test.js": script, "test_a.py": once("test_one") + once("test_two")})
    assert failures == ["4 flaky tests, more than 3"]
    assert sum(line.startswith("flaky: ") for line in lines) == 4
    assert lines[-1] == "0 passed, 2 failed, 0 skipped"


def test_rows_of_a_test_all_run():
    """Those that fail are named, whatever they raise, and the rest run."""
    ran = []
    with pytest.raises(pytest.fail.Exception) as caught, rows_of_a_test() as row:
        for number in range(5):
            with row(f"row {number}"):
                ran.append(number)
                assert number != 1, "one"
                if number == 2:
                    raise ValueError("two")
                if number == 3:
                    pytest.fail("three")
    assert ran == [0, 1, 2, 3, 4]
    assert str(caught.value).splitlines() == [
        "row 1: one",
        "assert 1 != 1",
        "row 2: ValueError: two",
        "row 3: Failed: three",
    ]
    with rows_of_a_test() as row, row("good"):
        pass


def test_what_is_left_in_a_directory_is_a_failure(tmp_path):
    """It is named; what was there before is not, nor what went. The directory may be missing at first."""
    directory = tmp_path / "system"
    with left_in(directory) as failures:
        (directory / "new").mkdir(parents=True)
    assert failures == [f"left behind: {directory / 'new'}"]
    with left_in(directory) as failures:
        (directory / "new").rmdir()
    assert failures == []


@pytest.mark.parametrize(
    "line",
    [
        "3 passed in 1.02s",
        "1 failed, 3 passed, 2 skipped in 83.10s (0:01:23)",
        "no tests ran in 0.01s",
        "== 2 errors in 1s ==",
    ],
)
def test_the_closing_line_is_known(line):
    """In each of its forms."""
    assert CLOSING.findall(f"...\n{line}\n") == [line]
