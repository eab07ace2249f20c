"""Snapshots, forks, and what a sandbox reaches, changed while it runs; with both SDKs."""
import asyncio, os
from e2b import AsyncSandbox, NotFoundException, Sandbox, SandboxException

other = {"api_key": os.environ["OTHER_KEY"]}

def listed(*of, **more):
    pages, found = Sandbox.list_snapshots(*of, **more), []
    while pages.has_next:
        found.append([(n.snapshot_id, n.names) for n in pages.next_items()])
    return found

a = Sandbox.create(timeout=900, metadata={"long": "x" * 600, "who": "a"}, envs={"KEPT": "yes"})
a.files.write("work/one", "first")
a.commands.run("chmod 750 work && ln -s one work/link")
one = a.create_snapshot(name="before")
assert one.names == ["before"], one
a.files.write("work/one", "second")
two = Sandbox.create_snapshot(a.sandbox_id)
assert two.names == [] and two.snapshot_id != one.snapshot_id, two
assert a.files.read("work/one") == "second", "it goes on"

# Newest first, in pages, by sandbox and by name; not anybody else's.
pair = [(two.snapshot_id, []), (one.snapshot_id, ["before"])]
assert listed(sandbox_id=a.sandbox_id) == [pair]
assert [n.snapshot_id for n in a.list_snapshots().next_items()] == [two.snapshot_id, one.snapshot_id]
assert listed(sandbox_id=a.sandbox_id, limit=1) == [[n] for n in pair]
for name in ("before", "before:v1", "project/before", one.snapshot_id):
    assert listed(sandbox_id=a.sandbox_id, name=name) == [[pair[1]]], name
assert listed(sandbox_id=a.sandbox_id, name="after") == [[]]
assert not any(n[0] == one.snapshot_id for page in listed(**other) for n in page)

# A sandbox made of one has its files, and the metadata that it is given.
b = Sandbox.create(one.snapshot_id, timeout=600, metadata={"long": "short"})
assert b.files.read("work/one") == "first" and b.files.read("work/link") == "first"
assert b.commands.run("stat -c %a work; echo $KEPT").stdout == "750\nyes\n"
assert b.get_info().metadata == {"long": "short"}, b.get_info().metadata
assert a.get_info().metadata == {"long": "x" * 600, "who": "a"}
assert Sandbox.create(one.snapshot_id, timeout=600).kill(), "as often as one likes"

# It outlives its sandbox, and is nobody else's.
assert a.kill()
c = Sandbox.create(two.snapshot_id, timeout=600)
assert c.files.read("work/one") == "second"
assert c.get_info().metadata == {}, c.get_info().metadata
try:
    Sandbox.create(one.snapshot_id, **other)
    raise AssertionError("it is another's")
except SandboxException:
    pass
assert Sandbox.delete_snapshot(one.snapshot_id, **other) is False
assert Sandbox.delete_snapshot(one.snapshot_id) is True
assert Sandbox.delete_snapshot(one.snapshot_id) is False
assert Sandbox.delete_snapshot(two.snapshot_id) is True
try:
    Sandbox.create(one.snapshot_id)
    raise AssertionError("it is deleted")
except SandboxException:
    pass

# Forks go their own ways.
c.files.write("work/one", "common")
x, y = c.fork(timeout=600, count=2)
assert isinstance(x, Sandbox) and isinstance(y, Sandbox), (x, y)
assert len({c.sandbox_id, x.sandbox_id, y.sandbox_id}) == 3
x.files.write("work/one", "x's")
assert [s.files.read("work/one") for s in (c, x, y)] == ["common", "x's", "common"]
try:
    Sandbox.fork(a.sandbox_id)
    raise AssertionError("it is gone")
except NotFoundException:
    pass
for s in (x, y, b):
    assert s.kill()

# What it reaches: all of it is said anew with each update, and what is left out is the template's again.
d = Sandbox.create("reaching", timeout=600)
def reaches(s):
    info = s.get_info()
    return info.allow_internet_access, (info.network or {}).get("allow_out", [])
assert reaches(d) == (False, ["example.org"]), reaches(d)
d.update_network({"allow_out": ["one.example", "192.0.2.0/24"], "deny_out": ["0.0.0.0/0"]})
assert reaches(d) == (False, ["192.0.2.0/24", "one.example"]) or reaches(d) == (False, ["one.example", "192.0.2.0/24"]), reaches(d)
Sandbox.update_network(d.sandbox_id, {"deny_out": ["0.0.0.0/0"]})
assert reaches(d) == (False, []), reaches(d)
d.update_network({})
assert reaches(d) == (False, ["example.org"]), reaches(d)
for network in ({"deny_out": ["192.0.2.1"]}, {"allow_out": ["no host!"]}):
    try:
        d.update_network(network)
        raise AssertionError(network)
    except SandboxException:
        pass
assert reaches(d) == (False, ["example.org"]), "as it was"
try:
    Sandbox.update_network(d.sandbox_id, {}, **other)
    raise AssertionError("it is another's")
except SandboxException:
    pass

async def main():
    s = await AsyncSandbox.create(timeout=600)
    await s.files.write("f", "async")
    snapshot = await s.create_snapshot(name="async")
    pages = s.list_snapshots()
    assert [n.names for n in await pages.next_items()] == [["async"]] and not pages.has_next
    made = await AsyncSandbox.create(snapshot.snapshot_id, timeout=600)
    assert await made.files.read("f") == "async"
    forks = await made.fork(timeout=600)
    assert len(forks) == 1 and await forks[0].files.read("f") == "async", forks
    await s.update_network({"deny_out": ["0.0.0.0/0"]})
    assert (await s.get_info()).allow_internet_access is False
    assert await AsyncSandbox.delete_snapshot(snapshot.snapshot_id) is True
    assert await AsyncSandbox.delete_snapshot(snapshot.snapshot_id) is False
    for sandbox in (s, made, *forks):
        assert await sandbox.kill()

asyncio.run(main())
assert c.kill() and d.kill()
print("ok")
