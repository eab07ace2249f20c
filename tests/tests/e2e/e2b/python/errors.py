"""What is wrong, and the class of error that it is."""
import os
from e2b import (AuthenticationException, InvalidArgumentException, NotFoundException, Sandbox, SandboxException,
                 TimeoutException)

def fails(kind, call, *words):
    try:
        call()
    except kind as e:
        assert all(word in str(e) for word in words), repr(e)
        return e
    raise AssertionError("it does not fail")

for key in ("e2b_" + b"berth_client_wrong".hex(), "e2b_00"):
    fails(AuthenticationException, lambda: Sandbox.create(api_key=key))
    fails(AuthenticationException, lambda: Sandbox.list(api_key=key).next_items())

s = Sandbox.create(timeout=600)
other = os.environ["OTHER_KEY"]
fails(NotFoundException, lambda: Sandbox.connect(s.sandbox_id, api_key=other))
fails(NotFoundException, lambda: Sandbox.set_timeout(s.sandbox_id, 1, api_key=other))
assert Sandbox.kill(s.sandbox_id, api_key=other) is False
assert s.sandbox_id not in [x.sandbox_id for x in Sandbox.list(api_key=other).next_items()]
theirs = Sandbox.create(timeout=600, api_key=other)
# The token of one sandbox opens no other.
mixed = Sandbox.connect(s.sandbox_id)
headers = mixed.connection_config.sandbox_headers
headers["E2b-Sandbox-Id"] = theirs.sandbox_id
import urllib.request, urllib.error
request = urllib.request.Request(os.environ["E2B_SANDBOX_URL"] + "/files?path=x", headers=headers)
assert fails(urllib.error.HTTPError, lambda: urllib.request.urlopen(request)).code == 401
theirs.kill()

fails(SandboxException, lambda: Sandbox.create(template="no-such"), "404")
fails(SandboxException, lambda: Sandbox.create(timeout=-1), "400")
fails(SandboxException, lambda: Sandbox.create(metadata={"k": "v" * 100000}), "400")
fails(SandboxException, lambda: Sandbox.create(envs={"bad=name": "x"}), "400")
fails(InvalidArgumentException, lambda: s.commands.run("true", cwd="/not/there"))
fails(Exception, lambda: s.commands.run("x" * 3000000))
assert s.commands.run("echo it goes on").stdout == "it goes on\n"

# Killed while something runs in it, and after that.
h = s.commands.run("sleep 1000", background=True, timeout=0)
s.kill()
fails(TimeoutException, h.wait)
fails(TimeoutException, lambda: s.commands.run("true"))
fails(TimeoutException, lambda: s.files.read("x"))
fails(TimeoutException, lambda: s.files.list("."))
fails(NotFoundException, lambda: Sandbox.connect(s.sandbox_id))
fails(NotFoundException, s.get_info)
print("ok")
