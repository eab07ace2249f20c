"""What a sandbox takes, with both SDKs."""
import asyncio, datetime, time
from e2b import AsyncSandbox, Sandbox, SandboxException

def until(fits, sandbox):
    """Metrics that fit: one sample a second at most."""
    for _ in range(240):
        metrics = sandbox.get_metrics()
        if metrics and fits(metrics[-1]):
            return metrics
        time.sleep(0.5)
    raise AssertionError(metrics)

def now():
    return datetime.datetime.now(datetime.timezone.utc)

s = Sandbox.create(timeout=900)
begin = now() - datetime.timedelta(seconds=5)
first = s.get_metrics()
assert len(first) == 1, first
m, info = first[0], s.get_info()
assert m.cpu_count == info.cpu_count and 0 <= m.cpu_used_pct <= 100, m
assert m.mem_total >= info.memory_mb << 20 and 0 <= m.mem_used < m.mem_total and m.mem_cache >= 0, m
assert 0 < m.disk_used < m.disk_total <= 1 << 30, m
assert abs(m.timestamp - now()) < datetime.timedelta(minutes=5), m

# It grows with what is done, and what was asked before is still told.
s.files.write("large", b"x" * (5 << 20))
hog = "x = b'x' * (64 << 20)\nwhile True: pass"
h = s.commands.run(f"python3 -c \"{hog}\"", background=True, timeout=0)
metrics = until(lambda n: n.mem_used >= m.mem_used + (60 << 20) and n.disk_used >= m.disk_used + (5 << 20) and n.cpu_used_pct > 0, s)
assert len(metrics) >= 2 and metrics[0] == m, metrics
assert [n.timestamp for n in metrics] == sorted(n.timestamp for n in metrics), metrics
assert h.kill()
until(lambda n: n.mem_used < m.mem_used + (60 << 20), s)

# Of a time.
assert s.get_metrics(start=begin, end=now() + datetime.timedelta(minutes=5))[0] == m
hour = datetime.timedelta(hours=1)
assert s.get_metrics(start=begin - hour, end=begin - hour / 2) == []
try:
    s.get_metrics(start=begin, end=begin - hour)
    raise AssertionError("a time that ends before it begins")
except SandboxException as e:
    assert "start" in str(e), e

# Of a paused one too, by its id, and with the other SDK.
(getattr(s, "pause", None) or s.beta_pause)()
known = len(Sandbox.get_metrics(s.sandbox_id))
assert known >= 2

async def main():
    metrics = await AsyncSandbox.get_metrics(s.sandbox_id)
    assert len(metrics) >= known and metrics[0] == m, metrics
    a = await AsyncSandbox.create(timeout=600)
    assert len(await a.get_metrics()) == 1
    await a.kill()

asyncio.run(main())
assert s.kill()
try:
    Sandbox.get_metrics(s.sandbox_id)
    raise AssertionError("it is gone")
except SandboxException as e:
    assert "not found" in str(e), e
print("ok")
