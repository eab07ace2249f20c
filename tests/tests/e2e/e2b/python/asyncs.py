"""The same with the asynchronous SDK, and many at once."""
import asyncio, time
from e2b import AsyncSandbox, CommandExitException, NotFoundException, PtySize, TimeoutException

async def main():
    s = await AsyncSandbox.create(timeout=900, metadata={"how": "async"})
    assert await s.is_running() and (await s.get_info()).metadata == {"how": "async"}
    r = await s.commands.run("echo out; echo err >&2")
    assert (r.stdout, r.stderr, r.exit_code) == ("out\n", "err\n", 0)
    try:
        await s.commands.run("exit 9")
        raise AssertionError("it failed")
    except CommandExitException as e:
        assert e.exit_code == 9
    # This client does not keep the time by itself.
    try:
        await s.commands.run("sleep 1000", timeout=1)
        raise AssertionError("it took too long")
    except TimeoutException:
        pass
    assert await s.commands.list() == []

    # More streams than one connection to the coordinator carries.
    async def one(n):
        return (await s.commands.run(f"sleep 1; echo {n}", timeout=0)).stdout
    numbers = await asyncio.gather(*(one(n) for n in range(24)))
    assert numbers == [f"{n}\n" for n in range(24)], numbers

    h = await s.commands.run("cat", background=True, stdin=True, timeout=0)
    await s.commands.send_stdin(h.pid, "input")
    await s.commands.close_stdin(h.pid)
    assert (await h.wait()).stdout == "input"

    out = bytearray()
    p = await s.pty.create(PtySize(rows=24, cols=80), on_data=lambda data: out.extend(data), timeout=0)
    await s.pty.send_stdin(p.pid, b"echo $((6*7)); exit\n")
    await p.wait()
    assert b"42" in out, bytes(out)

    await s.files.write("a/b", "content")
    assert await s.files.read("a/b") == "content"
    assert [e.name for e in await s.files.list("a")] == ["b"]
    assert await s.files.exists("a/b") and not await s.files.exists("a/c")
    assert await s.files.make_dir("d") and not await s.files.make_dir("d")
    await s.files.rename("a/b", "d/b")
    assert (await s.files.get_info("d/b")).size == 7
    await s.files.remove("d")
    try:
        await s.files.read("d/b")
        raise AssertionError("it is removed")
    except NotFoundException:
        pass
    assert await s.kill() is True
    assert await s.kill() is False
    assert not await s.is_running()

asyncio.run(main())
print("ok")
