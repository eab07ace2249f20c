"""A project's tests in parallel: it is set up once, its session is forked, and each fork runs one file of tests.

    pip install ./client/python
    python examples/parallel_tests.py

A fork has the files of the session that it was made of, and shares nothing with the others: tests that write to the same
file, or take the same port, are not in each other's way.
"""

import concurrent.futures
import sys

import berth

PROJECT = {
    "calculator.py": "def add(a, b):\n    return a + b\n\n\ndef divide(a, b):\n    return a / b\n",
    "test_add.py": (
        "import unittest, calculator\n\n"
        "class Add(unittest.TestCase):\n"
        "    def test_small(self): self.assertEqual(calculator.add(1, 2), 3)\n"
        "    def test_big(self): self.assertEqual(calculator.add(10**30, 1), 10**30 + 1)\n"
    ),
    "test_divide.py": (
        "import unittest, calculator\n\n"
        "class Divide(unittest.TestCase):\n"
        "    def test_even(self): self.assertEqual(calculator.divide(6, 3), 2)\n"
        "    def test_by_zero(self): self.assertIsNone(calculator.divide(1, 0))\n"
    ),
    "test_alone.py": (
        "import os, unittest\n\n"
        "class Alone(unittest.TestCase):\n"
        "    def test_nobody_else_is_here(self):\n"
        "        os.close(os.open('taken', os.O_CREAT | os.O_EXCL))\n"
    ),
    "test_alone_too.py": (
        "import os, unittest\n\n"
        "class AloneToo(unittest.TestCase):\n"
        "    def test_nobody_else_is_here(self):\n"
        "        os.close(os.open('taken', os.O_CREAT | os.O_EXCL))\n"
    ),
}


class Result:
    """What came of one file of tests."""

    def __init__(self, name: str, output: berth.Output) -> None:
        self.name = name
        self.ok = output.ok
        # unittest says on stderr how it went; its last line is the sum.
        self.words = (output.stderr_text.strip().splitlines() or [str(output.outcome)])[-1]
        self.seconds = output.duration


def run(session: berth.Session, name: str) -> Result:
    """Runs one file of tests."""
    return Result(name, session.run(["python3", "-m", "unittest", name], timeout=60))


def main() -> int:
    tests = sorted(name for name in PROJECT if name.startswith("test_"))
    with berth.Client.connect() as client, client.session(ttl=600) as session:
        for name, text in PROJECT.items():
            session.files.write(name, text)
        # Here would be what takes long: dependencies, a build, a database.
        session.run(["python3", "-m", "compileall", "-q", "."]).check()
        copies, checkpoint = session.fork(len(tests), ttl=600, wait=600)
        try:
            with concurrent.futures.ThreadPoolExecutor(len(tests)) as pool:
                results = list(pool.map(run, copies, tests))
        finally:
            for copy in copies:
                copy.delete()
            client.delete_checkpoint(checkpoint.id)
    for result in results:
        print(f"{'ok    ' if result.ok else 'FAILED'}  {result.name:20}  {result.seconds:5.2f} s  {result.words}")
    failed = sum(not result.ok for result in results)
    print(f"{len(results) - failed} of {len(results)} files passed, each in a fork of its own")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except berth.BerthError as error:
        sys.exit(f"error: {error}")
