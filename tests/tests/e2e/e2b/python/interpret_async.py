"""Code that is run, with the asynchronous SDK: at once, and given up."""
import asyncio
from e2b_code_interpreter import AsyncSandbox, NotFoundException, SandboxException, TimeoutException

async def there(s, path):
    while not await s.files.exists(path):
        await asyncio.sleep(0.05)

async def main():
    s = await AsyncSandbox.create(timeout=900)
    # Eight that are the first make one context.
    ran = await asyncio.gather(*(s.run_code(f"x{n} = {n}; x{n}") for n in range(8)))
    assert [r.text for r in ran] == [str(n) for n in range(8)], ran
    assert sorted(r.execution_count for r in ran) == list(range(1, 9)), ran
    assert len(await s.list_code_contexts()) == 1
    assert (await s.run_code("sum([x0, x1, x2, x3, x4, x5, x6, x7])")).text == "28"

    # Output as it comes, to functions and to coroutines.
    lines = []
    async def go(message):
        lines.append(message.line)
        if len(lines) == 1:
            await s.files.write("go", "")
    code = "import os, time\nprint('one', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('two')\n[1, 2]"
    results, errors = [], []
    ran = await s.run_code(code, on_stdout=go, on_result=results.append, timeout=0)
    assert lines[0] == "one\n" and "".join(lines) == "one\ntwo\n" and results == ran.results and ran.text == "[1, 2]", ran
    ran = await s.run_code("raise ValueError('odd')", on_error=errors.append)
    assert (ran.error.name, ran.error.value) == ("ValueError", "odd") and errors == [ran.error]

    # Who goes away is not waited for: its code is interrupted.
    code = """
open("begun", "w").close()
try:
    time.sleep(100000)
except KeyboardInterrupt:
    open("interrupted", "w").close()
    raise
"""
    given_up = asyncio.create_task(s.run_code(code, timeout=0))
    await there(s, "begun")
    given_up.cancel()
    await there(s, "interrupted")
    assert (await s.run_code("x7", timeout=0)).text == "7", "and what it had defined is there"
    try:
        await s.run_code("while True: pass", timeout=1)
        raise AssertionError("it took too long")
    except TimeoutException:
        pass
    assert (await s.run_code("x7", timeout=0)).text == "7"

    # Two contexts run at once: each waits for the other.
    a, b = await asyncio.gather(s.create_code_context(), s.create_code_context(cwd="/tmp"))
    assert (a.cwd, b.cwd) == ("/home/user", "/tmp")
    def meet(own, other):
        return f"import os, time\nopen('/tmp/{own}', 'w').close()\nwhile not os.path.exists('/tmp/{other}'): time.sleep(0.01)\n'{own}'"
    met = await asyncio.gather(s.run_code(meet("a", "b"), context=a, timeout=0), s.run_code(meet("b", "a"), context=b, timeout=0))
    assert [m.text for m in met] == ["a", "b"], met
    await s.restart_code_context(a)
    assert (await s.run_code("os", context=a)).error.name == "NameError"
    await s.remove_code_context(a.id)
    try:
        await s.run_code("1", context=a)
        raise AssertionError("it is gone")
    except NotFoundException:
        pass
    # What runs in one that is taken away is told so.
    code = "print('begun', flush=True); import time; time.sleep(100000)"
    running = asyncio.Event()
    taken = asyncio.create_task(s.run_code(code, context=b, on_stdout=lambda m: running.set(), timeout=0))
    await running.wait()
    await s.remove_code_context(b)
    assert (await taken).error.name == "ExecutionCancelled"

    # As many wait as may; one more is told so, and the rest run.
    code = "open('held', 'w').close()\nwhile not os.path.exists('free'): time.sleep(0.01)"
    held = asyncio.create_task(s.run_code(code, timeout=0))
    await there(s, "held")
    refused = []
    async def one():
        try:
            return (await s.run_code("1", timeout=0)).text
        except SandboxException as e:
            assert "429" in str(e), e
            refused.append(e)
            if len(refused) == 4:
                await s.files.write("free", "")
    done = await asyncio.gather(*(one() for _ in range(20)))
    assert len(refused) == 4 and done.count("1") == 16, (len(refused), done)
    assert (await held).error is None
    await s.kill()

asyncio.run(main())
print("ok")
