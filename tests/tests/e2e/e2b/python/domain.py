"""E2B_DOMAIN: host names of sandboxes below it, over TLS, through a proxy that knows nothing but TLS."""
import os, sys, urllib.parse, urllib.request

sys.path.insert(0, os.path.dirname(__file__))
from tls import gateway

from e2b import Sandbox, SandboxQuery

s = Sandbox.create(timeout=300, metadata={"by": "domain"})
assert s.commands.run("echo over TLS").stdout == "over TLS\n"
s.files.write("a", b"\x00" * 1000000)
assert len(s.files.read("a", format="bytes")) == 1000000
assert [x.sandbox_id for x in Sandbox.list(query=SandboxQuery(metadata={"by": "domain"})).next_items()] == [s.sandbox_id]
assert s.get_host(8000) == f"8000-{s.sandbox_id}.{os.environ['E2B_DOMAIN']}"
# A link says by its host name of which sandbox.
url = urllib.parse.urlsplit(s.download_url("a"))
assert url.hostname == f"49983-{s.sandbox_id}.berth.localhost", url
asked = urllib.request.Request(f"{gateway.scheme}://{gateway.netloc}{url.path}?{url.query}", headers={"Host": url.netloc})
assert len(urllib.request.urlopen(asked).read()) == 1000000
assert s.kill()
print("ok")
