"""Sandboxes: made, found, changed, paused and ended, with the synchronous SDK."""
import datetime, time, uuid
from e2b import Sandbox, SandboxQuery, SandboxState

mark = uuid.uuid4().hex
metadata = {"mark": mark, "name": "a/b & c=d %41", "long": "ä" * 1000, "empty": "", "": "no key"}
a = Sandbox.create(timeout=600, metadata=metadata, envs={"GREETING": "hello there"})
assert a.sandbox_id.isalnum() and a.sandbox_id == a.sandbox_id.lower(), a.sandbox_id
assert a.is_running()
assert a.commands.run("echo $GREETING").stdout == "hello there\n"

info = a.get_info()
assert info.sandbox_id == a.sandbox_id and info.template_id == "base", info
assert info.metadata == metadata, info.metadata
assert info.state == SandboxState.RUNNING and info.cpu_count >= 1 and info.memory_mb >= 16, info
left = info.end_at - datetime.datetime.now(datetime.timezone.utc)
assert datetime.timedelta(seconds=500) < left <= datetime.timedelta(seconds=600), left

a.set_timeout(1200)
assert a.get_info().end_at > info.end_at + datetime.timedelta(seconds=500)

b = Sandbox.create(timeout=600, metadata={"mark": mark, "second": "yes"})

def listed(query, **more):
    pages, found = Sandbox.list(query=query, **more), []
    while pages.has_next:
        found.append([s.sandbox_id for s in pages.next_items()])
    return found

assert listed(SandboxQuery(metadata={"mark": mark}), limit=1) == [[b.sandbox_id], [a.sandbox_id]]
assert listed(SandboxQuery(metadata={"mark": mark, "second": "yes"})) == [[b.sandbox_id]]
assert listed(SandboxQuery(metadata={"mark": mark, "name": "a/b & c=d %41"})) == [[a.sandbox_id]]
assert listed(SandboxQuery(metadata={"mark": "other"})) == [[]]

# A second handle on the same sandbox; a shorter timeout takes nothing from it.
again = Sandbox.connect(a.sandbox_id, timeout=1)
assert again.commands.run("echo again").stdout == "again\n"
assert a.get_info().end_at > info.end_at

# What runs goes on after a pause, and so does what is kept.
started = b.commands.run("for i in $(seq 1000); do echo $i; sleep 0.1; done > /tmp/count", background=True, timeout=0)
b.files.write("kept", "as it was")
pause = getattr(b, "pause", None) or b.beta_pause
assert pause() is not False
assert pause() is False, "it is paused already"
assert b.get_info().state == SandboxState.PAUSED
assert listed(SandboxQuery(metadata={"mark": mark}, state=[SandboxState.PAUSED])) == [[b.sandbox_id]]
assert listed(SandboxQuery(metadata={"mark": mark}, state=[SandboxState.RUNNING])) == [[a.sandbox_id]]
assert not b.is_running()
Sandbox.connect(b.sandbox_id, timeout=300)
assert b.is_running() and b.files.read("kept") == "as it was"
assert b.commands.kill(started.pid)

assert a.kill() is True
assert a.kill() is False
assert not a.is_running()
assert Sandbox.kill(b.sandbox_id) is True
assert Sandbox.kill("0" * 32) is False
assert Sandbox.kill("nonsense") is False
assert listed(SandboxQuery(metadata={"mark": mark})) == [[]]

# A timeout ends it.
c = Sandbox.create(timeout=600)
c.set_timeout(1)
while c.is_running():
    time.sleep(0.05)
print("ok")
