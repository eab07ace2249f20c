"""Directories that are watched, with both SDKs: every wait is for an event, and none for a time."""
import asyncio, threading
from e2b import AsyncSandbox, FilesystemEventType as T, NotFoundException, Sandbox, SandboxException, TimeoutException

s = Sandbox.create(timeout=900)
f = s.files
tick = threading.Event()

def until(watcher, name, kind):
    """All that comes until this."""
    seen = []
    for _ in range(2000):
        seen += [(e.name, e.type) for e in watcher.get_new_events()]
        if (name, kind) in seen:
            return seen
        tick.wait(0.05)
    raise AssertionError(f"{name} {kind} does not come: {seen}")

f.make_dir("d")
w = f.watch_dir("d")
assert w.get_new_events() == []
f.write("d/a", "x")
seen = until(w, "a", T.WRITE)
assert ("a", T.CREATE) in seen and {name for name, _ in seen} == {"a"}, seen
s.commands.run("cd d; chmod 600 a; mv a b; mkdir deep; echo > deep/unseen; rm b; echo > end")
seen = until(w, "end", T.CREATE)
told = [e for e in seen if e[0] != "end" and e != ("a", T.WRITE)]
assert told == [
    ("a", T.CHMOD), ("a", T.RENAME), ("b", T.CREATE), ("deep", T.CREATE), ("b", T.REMOVE),
], seen

r = f.watch_dir("d", recursive=True)
s.commands.run("mkdir -p d/x/y; echo > d/x/y/z")
until(r, "x/y/z", T.CREATE)
r.stop()
try:
    r.get_new_events()
    raise AssertionError("it is stopped")
except SandboxException:
    pass

def fails(kind, call, *words):
    try:
        call()
    except kind as e:
        assert all(word in str(e) for word in words), repr(e)
        return
    raise AssertionError("it does not fail")

fails(NotFoundException, lambda: f.watch_dir("not/there"))
fails(SandboxException, lambda: f.watch_dir("/etc/passwd"))
# What another sandbox watches is nobody else's: an id alone opens nothing.
other = Sandbox.create(timeout=900)
theirs = other.files.watch_dir("/home/user")
theirs._watcher_id = w._watcher_id
fails(NotFoundException, theirs.get_new_events, "no such watcher")
other.kill()

# The directory goes: what was told before is told first.
s.commands.run("rm -r d")
for _ in range(2000):
    try:
        w.get_new_events()
    except NotFoundException as e:
        assert "not there any more" in str(e), e
        break
    tick.wait(0.05)
else:
    raise AssertionError("the watcher outlives its directory")
w.stop()

async def asynchronously():
    a = await AsyncSandbox.connect(s.sandbox_id)
    await a.files.make_dir("async")
    events, ends = asyncio.Queue(), asyncio.Queue()
    h = await a.files.watch_dir("async", on_event=events.put, on_exit=ends.put, timeout=0, recursive=True)
    await a.files.write("async/one", "1")
    while True:
        e = await asyncio.wait_for(events.get(), 120)
        if (e.name, e.type) == ("one", T.WRITE):
            break
        assert e.name == "one", e
    await h.stop()
    assert await asyncio.wait_for(ends.get(), 120) is None
    # It ends with its directory, and with its time: which may be over before it has begun.
    h = await a.files.watch_dir("async", on_event=events.put, on_exit=ends.put, timeout=0)
    await a.commands.run("rm -r async")
    error = await asyncio.wait_for(ends.get(), 120)
    assert isinstance(error, NotFoundException), repr(error)
    try:
        h = await a.files.watch_dir("/home/user", on_event=events.put, on_exit=ends.put, timeout=1)
        error = await asyncio.wait_for(ends.get(), 120)
    except TimeoutException as e:
        error = e
    assert isinstance(error, TimeoutException), repr(error)
    try:
        await a.files.watch_dir("nowhere", on_event=events.put)
        raise AssertionError("it is not there")
    except NotFoundException:
        pass

asyncio.run(asynchronously())
assert s.kill()
print("ok")
