"""Commands and terminals, with the synchronous SDK."""
import threading
from e2b import CommandExitException, NotFoundException, PtySize, Sandbox, TimeoutException

s = Sandbox.create(timeout=900)
run = s.commands.run

r = run("echo out; echo err >&2; pwd; id -un; echo $HOME; shopt login_shell | cut -f2")
assert (r.stderr, r.exit_code, r.error) == ("err\n", 0, None), r
assert r.stdout == "out\n/home/user\nuser\n/home/user\non\n", r.stdout
assert run("pwd", cwd="/tmp").stdout == "/tmp\n"
assert run("mkdir -p below && pwd").stdout == "/home/user\n"
assert run("pwd", cwd="below").stdout == "/home/user/below\n"
assert run("echo $A-$B", envs={"A": "1 2", "B": "ß"}).stdout == "1 2-ß\n"
assert run("cat").stdout == "", "nothing is on its input"
assert run("id -un", user="user").stdout == "user\n"

try:
    run("echo before; exit 3")
    raise AssertionError("it failed")
except CommandExitException as e:
    assert (e.exit_code, e.stdout, e.error) == (3, "before\n", "exit status 3"), e

# Output comes as it is made, in order, and whole, whatever it is.
seen = []
run("echo a; sleep 0.3; echo b", on_stdout=seen.append)
assert seen == ["a\n", "b\n"], seen
big = run("head -c 3000000 /dev/zero | tr '\\0' x; head -c 1000000 /dev/zero | tr '\\0' y >&2")
assert (len(big.stdout), set(big.stdout), len(big.stderr)) == (3000000, {"x"}, 1000000)

# Its own time is the server's to keep: the process is gone.
try:
    run("echo $$ > /tmp/late; sleep 1000", timeout=1)
    raise AssertionError("it took too long")
except TimeoutException:
    pass
run("for i in $(seq 100); do kill -0 $(cat /tmp/late) 2>/dev/null || exit 0; sleep 0.1; done; exit 1")

# In the background, and back to it.
h = run("echo begin; read line; echo got $line; cat; sleep 0.2; exit 4", background=True, stdin=True, timeout=0)
assert h.pid in [p.pid for p in s.commands.list()]
shown = next(p for p in s.commands.list() if p.pid == h.pid)
assert (shown.cmd, shown.args[:2]) == ("/bin/bash", ["-l", "-c"]), shown
assert next(iter(h))[0] == "begin\n"
h.disconnect()
h = s.commands.connect(h.pid)
s.commands.send_stdin(h.pid, "one\n")
s.commands.send_stdin(h.pid, "zwei ä" * 30000)
s.commands.close_stdin(h.pid)
try:
    h.wait()
    raise AssertionError("it exits with 4")
except CommandExitException as e:
    assert e.exit_code == 4 and e.stdout == "got one\n" + "zwei ä" * 30000, (e.exit_code, len(e.stdout))
assert h.pid not in [p.pid for p in s.commands.list()]

# Killed: once.
h = run("sleep 1000", background=True, timeout=0)
assert h.kill() is True
try:
    h.wait()
    raise AssertionError("it was killed")
except CommandExitException as e:
    assert (e.exit_code, e.error) == (-1, "signal: killed"), e
assert s.commands.kill(h.pid) is False
assert s.commands.kill(999999) is False
for gone in (lambda: s.commands.connect(999999), lambda: s.commands.send_stdin(999999, "x")):
    try:
        gone()
        raise AssertionError("there is no such process")
    except NotFoundException:
        pass

# What a command leaves behind goes on.
run("nohup sleep 1000 >/dev/null 2>&1 & echo $! > /tmp/left")
assert run("kill -0 $(cat /tmp/left); echo $?").stdout == "0\n"

if hasattr(s.commands, "stream_input"):
    h = run("wc -c", background=True, stdin=True)
    s.commands.stream_input(h.pid, (b"x" * 100000 for _ in range(5)))
    s.commands.close_stdin(h.pid)
    assert h.wait().stdout.strip() == "500000"

# A terminal.
out = bytearray()
pty = s.pty.create(PtySize(rows=30, cols=100), cwd="/tmp", envs={"X": "42"}, timeout=0)
def follow():
    try:
        pty.wait(on_pty=out.extend)
    except CommandExitException as e:
        out.extend(b"[%d]" % e.exit_code)
thread = threading.Thread(target=follow)
thread.start()
s.pty.send_stdin(pty.pid, b"tty; stty size; pwd; echo x$X\n")
s.pty.resize(pty.pid, PtySize(rows=40, cols=120))
s.pty.send_stdin(pty.pid, b"stty size; exit 7\n")
thread.join(60)
text = out.decode(errors="replace")
for wanted in ("/dev/pts/", "40 120", "/tmp", "x42", "[7]"):
    assert wanted in text, (wanted, text)
pty = s.pty.create(PtySize(rows=10, cols=10), timeout=0)
assert s.pty.kill(pty.pid) is True
while s.pty.kill(pty.pid):
    pass

# No user is ever root.
try:
    run("id", user="root")
    raise AssertionError("root is not served")
except Exception as e:
    assert "root" in str(e) and "ordinary user" in str(e), repr(e)

s.kill()
print("ok")
