"""Runs HumanEval-style programs, as a model would write them, each in a session of its own and several at a time.

    python examples/humaneval.py                     # with the `berth up` of this machine
    python examples/humaneval.py --parallel 8 --repeat 10

A program is a problem's prompt, a completion and the problem's tests. The completions stand here in place of a model: right
ones, wrong ones, and ones that never end or take all memory, which is why such programs belong in a sandbox.
"""

import argparse
import asyncio
import sys
import textwrap
from typing import Dict, List, NamedTuple, Tuple

import berth
import berth.aio

#: Wall-clock seconds that a program may take.
TIMEOUT = 10
LIMITS = berth.Limits(memory_bytes=128 << 20, pids=32)


class Problem(NamedTuple):
    name: str
    prompt: str
    tests: str
    completions: List[str]


PROBLEMS = [
    Problem(
        "has_close_elements",
        'def has_close_elements(numbers, threshold):\n    """Whether any two numbers are closer than the threshold."""\n',
        "assert has_close_elements([1.0, 2.8, 3.0, 4.0], 0.3)\nassert not has_close_elements([1.0, 2.0, 3.0], 0.5)",
        [
            "    ordered = sorted(numbers)\n    return any(b - a < threshold for a, b in zip(ordered, ordered[1:]))",
            "    return any(b - a < threshold for a, b in zip(numbers, numbers[1:]))",
            "    return min(numbers) < threshold",
        ],
    ),
    Problem(
        "separate_parens",
        'def separate_parens(text):\n    """Balanced groups of parentheses, as a list. Spaces do not count."""\n',
        "assert separate_parens('( ) (( )) (( )( ))') == ['()', '(())', '(()())']\nassert separate_parens('') == []",
        [
            "    groups, depth, group = [], 0, ''\n"
            "    for c in text.replace(' ', ''):\n"
            "        group += c\n"
            "        depth += 1 if c == '(' else -1\n"
            "        if depth == 0:\n"
            "            groups.append(group)\n"
            "            group = ''\n"
            "    return groups",
            "    return text.split(' ')",
        ],
    ),
    Problem(
        "fibonacci",
        'def fibonacci(n):\n    """The n-th number of Fibonacci, from fibonacci(0) == 0."""\n',
        "assert [fibonacci(n) for n in range(8)] == [0, 1, 1, 2, 3, 5, 8, 13]\nassert fibonacci(90) == 2880067194370816120",
        [
            "    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a",
            "    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)",
        ],
    ),
    Problem(
        "largest_prime_factor",
        'def largest_prime_factor(n):\n    """The largest prime factor of n > 1."""\n',
        "assert largest_prime_factor(13195) == 29\nassert largest_prime_factor(2048) == 2\nassert largest_prime_factor(97) == 97",
        [
            "    factor = 2\n    while factor * factor <= n:\n        if n % factor:\n            factor += 1\n"
            "        else:\n            n //= factor\n    return n",
            "    factor = 2\n    while n > 1:\n        if n % factor == 0:\n            n //= factor\n    return factor",
        ],
    ),
    Problem(
        "flip_case",
        'def flip_case(text):\n    """The text with upper case for lower case and the other way round."""\n',
        "assert flip_case('Hello, World') == 'hELLO, wORLD'",
        ["    return text.swapcase()", "    return text.lower()", "    return text.swapcase("],
    ),
    Problem(
        "words_in_order",
        'def words_in_order(text):\n    """The words of a text, sorted, each once."""\n',
        "assert words_in_order('b a c a') == ['a', 'b', 'c']",
        ["    return sorted(set(text.split()))", "    words = text.split()\n    while True:\n        words += words"],
    ),
]


def program(problem: Problem, completion: str) -> str:
    """One file: the function and its tests."""
    return f"{problem.prompt}{completion}\n\n{textwrap.dedent(problem.tests)}\n"


async def verdict(client: berth.aio.Client, problem: Problem, completion: str) -> str:
    """Runs one program in a session of its own."""
    async with client.session(limits=LIMITS, ttl=TIMEOUT * 6, wait=600, labels={"made-by": "humaneval"}) as session:
        await session.files.write("program.py", program(problem, completion))
        output = await session.run(["python3", "program.py"], timeout=TIMEOUT)
    if output.ok:
        return "passed"
    last = output.stderr_text.strip().splitlines()[-1:]
    return last[0].split(":")[0] if output.code is not None and last else str(output.outcome)


class Progress:
    """A bar on stderr where that is a terminal, and else a line now and then."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.passed = total, 0, 0

    def tell(self, passed: bool) -> None:
        self.done += 1
        self.passed += passed
        text = f"{self.done}/{self.total} programs, {self.passed} passed"
        if sys.stderr.isatty():
            filled = 30 * self.done // self.total
            end = "\n" if self.done == self.total else ""
            print(f"\r[{'#' * filled}{'.' * (30 - filled)}] {text}", end=end, file=sys.stderr, flush=True)
        elif self.done == self.total or self.done % 10 == 0:
            print(text, file=sys.stderr, flush=True)


async def main(address: str, parallel: int, repeat: int) -> int:
    jobs = [(p, completion) for _ in range(repeat) for p in PROBLEMS for completion in p.completions]
    verdicts: Dict[str, List[str]] = {problem.name: [] for problem in PROBLEMS}
    progress, room = Progress(len(jobs)), asyncio.Semaphore(parallel)

    async with await berth.aio.Client.connect(address or None) as client:

        async def work(job: Tuple[Problem, str]) -> None:
            async with room:
                said = await verdict(client, *job)
            verdicts[job[0].name].append(said)
            progress.tell(said == "passed")

        await asyncio.gather(*[work(job) for job in jobs])

    width = max(len(name) for name in verdicts)
    print(f"{'problem':{width}}  passed  what the others did")
    for name, said in verdicts.items():
        failed = sorted({f"{s} ({said.count(s)})" for s in said if s != "passed"})
        print(f"{name:{width}}  {said.count('passed'):>2}/{len(said):<3}  {', '.join(failed)}")
    print(f"{progress.passed} of {progress.total} passed")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Runs HumanEval-style programs in parallel sessions.")
    parser.add_argument("--address", default="", help="of the coordinator; found as the command line finds it if left out")
    parser.add_argument("--parallel", type=int, default=4, help="sessions at a time (4)")
    parser.add_argument("--repeat", type=int, default=1, help="how often each program is run (1)")
    given = parser.parse_args()
    try:
        sys.exit(asyncio.run(main(given.address, given.parallel, given.repeat)))
    except berth.BerthError as error:
        sys.exit(f"error: {error}")
