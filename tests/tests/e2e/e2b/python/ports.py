"""get_host: what listens in a sandbox, as programs that know nothing of Berth reach it."""
import json, os, socket, ssl, sys, urllib.error, urllib.request

sys.path.insert(0, os.path.dirname(__file__))
import tls
from e2b import Sandbox

# As browsers and most systems do: names below localhost are this machine.
resolve = socket.getaddrinfo
socket.getaddrinfo = lambda host, *more, **named: resolve(
    "127.0.0.1" if str(host).endswith(".localhost") else host, *more, **named)
trust = ssl.create_default_context(cafile=tls.cert)

def get(url, **headers):
    """The status and the body, whatever they are."""
    asked = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(asked, context=trust, timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()

def serve(s):
    s.files.write("site/index.html", "hello from a port")
    s.files.write("site/big", b"\x01" * 10_000_000)
    server = s.commands.run("python3 -u -m http.server -d site 3000", background=True, timeout=0)
    for out, _, _ in server:
        if out and "Serving" in out:
            break
    return server

# Opened to everybody, as E2B's own are.
s = Sandbox.create(timeout=600, network={"allow_public_traffic": True})
serve(s)
url = "https://" + s.get_host(3000)
assert get(url) == (200, b"hello from a port"), get(url)
status, body = get(url + "/big")
assert (status, len(body), set(body)) == (200, 10_000_000, {1}), (status, len(body))
assert get(url + "/nothing")[0] == 404
status, body = get("https://" + s.get_host(3001))
assert status == 502 and json.loads(body) == {
    "sandboxId": s.sandbox_id, "message": "The sandbox is running but port is not open", "port": 3001, "code": 502}, body
assert s.kill()
status, body = get(url)
assert status == 502 and json.loads(body)["message"] == "The sandbox was not found", body

# Closed to who does not have its token.
for network in (None, {"allow_public_traffic": False}):
    s = Sandbox.create(timeout=600, network=network)
    serve(s)
    url = "https://" + s.get_host(3000)
    status, body = get(url)
    assert status == 401 and "allow_public_traffic" in json.loads(body)["message"], (status, body)
    assert get(url, e2b_traffic_access_token=s.traffic_access_token) == (200, b"hello from a port")
    again = Sandbox.connect(s.sandbox_id)
    assert get(url, e2b_traffic_access_token=again.traffic_access_token)[0] == 200
    other = Sandbox.create(timeout=600, api_key=os.environ["OTHER_KEY"])
    assert get(url, e2b_traffic_access_token=other.traffic_access_token)[0] == 401
    assert get(url, X_API_KEY=os.environ["OTHER_KEY"])[0] == 502
    assert other.kill() and s.kill()
print("ok")
