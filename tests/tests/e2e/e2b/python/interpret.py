"""Code that is run, with the synchronous SDK: state, output as it comes, errors, contexts, variables, timeouts."""
import json, os, threading, urllib.error, urllib.request
from e2b_code_interpreter import NotFoundException, Sandbox, SandboxException, TimeoutException

def fails(kind, call, *words):
    try:
        call()
    except kind as e:
        assert all(word in str(e) for word in words), repr(e)
        return e
    raise AssertionError("it does not fail")

s = Sandbox.create(timeout=900, envs={"GREETING": "hello there"})

# State, and what is told of each run.
first = s.run_code("x = 20; y = 'text'")
assert (first.text, first.results, first.error, first.execution_count) == (None, [], None, 1), first
second = s.run_code("x + 1")
assert (second.text, second.execution_count) == ("21", 2) and second.results[0].is_main_result, second
assert s.run_code("y").text == "text", "a string has no quotes"
assert s.run_code("import os; os.getcwd()").text == "/home/user"
assert s.run_code("os.environ['GREETING']").text == "hello there"
assert s.run_code("x; None").text is None
s.files.write("from_sdk.txt", "shared")
assert s.run_code("open('from_sdk.txt').read()").text == "shared"

# Output comes while the code runs: it waits for what only its first line brings about.
def go(message):
    if "begin" in message.line:
        s.files.write("go", "")
told = []
ran = s.run_code("""
import sys, time
print("begin", flush=True)
while not os.path.exists("go"): time.sleep(0.01)
print("€" * 50000)
print("wrong", file=sys.stderr)
x
""", on_stdout=lambda m: (told.append(m), go(m)), on_stderr=told.append, on_result=told.append, timeout=0)
assert "".join(ran.logs.stdout) == "begin\n" + "€" * 50000 + "\n" and "".join(ran.logs.stderr) == "wrong\n", ran
assert told[0].line == "begin\n" and told[0].timestamp > 1_600_000_000_000_000_000 and not told[0].error, told[0]
assert [t for t in told if t in ran.results] == ran.results and ran.text == "20"
assert any(getattr(t, "error", False) and t.line == "wrong\n" for t in told)

# Errors.
seen = []
ran = s.run_code("print('before')\ndef f():\n    1 / 0\nf()", on_error=seen.append)
assert (ran.error.name, ran.error.value) == ("ZeroDivisionError", "division by zero"), ran
assert "1 / 0" in ran.error.traceback and "\x1b" not in ran.error.traceback, ran.error.traceback
assert seen == [ran.error] and ran.logs.stdout == ["before\n"] and ran.text is None
assert s.run_code("def f(:").error.name == "SyntaxError"
assert s.run_code("x").text == "20", "an error ends nothing"

# Variables of one run.
assert s.run_code("os.environ['OWN'], os.environ['GREETING']", envs={"OWN": "ключ", "GREETING": "other"}).text == "('ключ', 'other')"
assert s.run_code("os.environ.get('OWN'), os.environ['GREETING']").text == "(None, 'hello there')"
assert s.run_code("import subprocess; subprocess.run(['printenv', 'OWN'], capture_output=True).stdout", envs={"OWN": "1"}).text == "b'1\\n'"
assert s.run_code("1 / 0", envs={"OWN": "1"}).error and s.run_code("'OWN' in os.environ").text == "False"
fails(SandboxException, lambda: s.run_code("1", envs={"a=b": "x"}), "400")

# Contexts.
assert len(s.list_code_contexts()) == 1, "the default one, however often it was used"
s.files.make_dir("sub")
a, b = s.create_code_context(cwd="/tmp"), s.create_code_context(cwd="sub", language="python")
assert (a.cwd, a.language, b.cwd) == ("/tmp", "python", "/home/user/sub"), (a, b)
assert s.run_code("import os; z = 1; os.getcwd()", context=a).text == "/tmp"
assert s.run_code("z", context=b).error.name == "NameError" and s.run_code("z").error.name == "NameError"
assert s.run_code("x", language="python").text == "20", "the default one"
assert {c.id for c in s.list_code_contexts()} > {a.id, b.id}
s.restart_code_context(a)
assert s.run_code("z", context=a).error.name == "NameError"
assert s.run_code("import os; os.getcwd()", context=a).text == "/tmp"
s.remove_code_context(b)
fails(NotFoundException, lambda: s.run_code("1", context=b))
fails(NotFoundException, lambda: s.remove_code_context(b))
fails(NotFoundException, lambda: s.restart_code_context("none"))
assert b.id not in [c.id for c in s.list_code_contexts()]
fails(SandboxException, lambda: s.create_code_context(cwd="/not/there"), "400", "/not/there")
fails(SandboxException, lambda: s.create_code_context(language="javascript"), "501", "Python")
fails(SandboxException, lambda: s.run_code("1", language="r"), "501", "Python")

# One that dies: the default one is made anew, and says so; another says that it is dead.
died = s.run_code("os._exit(3)")
assert died.error.name == "ContextDied" and "exited with 3" in died.error.value, died
anew = s.run_code("'x' in globals()")
assert anew.text == "False" and "a new one was made" in "".join(anew.logs.stderr), anew
assert s.run_code("import os; 1 + 1").logs.stderr == []
assert s.run_code("os._exit(4)", context=a).error.name == "ContextDied"
fails(SandboxException, lambda: s.run_code("1", context=a), "exited with 4")
s.restart_code_context(a)
assert s.run_code("1", context=a).text == "1"

# Its time is over: what runs is interrupted, and what it had defined is there.
code = """
kept = 5
import time
try:
    time.sleep(100000)
finally:
    open("ended", "w").close()
"""
fails(TimeoutException, lambda: s.run_code(code, timeout=1))
assert s.run_code("1 + 1", timeout=0).text == "2"

def raw(path, token=None, traffic=None, body=None, method=None, sandbox=s):
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49999", "Content-Type": "application/json"}
    headers |= {"X-Access-Token": token} if token else {}
    headers |= {"E2B-Traffic-Access-Token": traffic} if traffic else {}
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.urlopen(urllib.request.Request(os.environ["E2B_SANDBOX_URL"] + path, data, headers, method=method))

# Whoever goes away while its code waits ends that alone, and not what runs.
mine, traffic = s._envd_access_token, s.traffic_access_token
begun, ran = threading.Event(), []
code = "print('begun', flush=True)\nwhile not os.path.exists('on'): time.sleep(0.01)\n'ran'"
running = threading.Thread(target=lambda: ran.append(s.run_code(code, on_stdout=lambda m: begun.set(), timeout=0)))
running.start()
begun.wait()
waiting = raw("/execute", mine, body={"code": "import time; time.sleep(100000)"})
assert json.loads(waiting.readline())["type"] == "number_of_executions", "it is taken"
waiting.close()
s.files.write("on", "")
running.join()
assert ran[0].text == "ran" and ran[0].error is None, ran
assert s.run_code("1 + 1", timeout=0).text == "2", "what waited is gone, or was interrupted"

# Who may.
other = os.environ["OTHER_KEY"]
theirs = Sandbox.create(timeout=900, api_key=other)
assert theirs.run_code("1 + 1").text == "2" and len(theirs.list_code_contexts()) == 1
def refused(*args, **kwargs):
    return fails(urllib.error.HTTPError, lambda: raw(*args, **kwargs)).code
one = {"code": "1"}
assert json.loads(raw("/contexts", traffic=traffic).read())[0]["language"] == "python"
assert [refused("/execute", body=one), refused("/contexts"), refused("/contexts", body={})] == [401, 401, 401]
assert refused("/execute", traffic=traffic, body=one) == 401, "it opens no more than contexts"
assert refused("/execute", token=traffic, body=one) == 401
for path, body, method in [("/execute", one, None), ("/contexts", None, None), ("/contexts", {}, None),
                           (f"/contexts/{a.id}", None, "DELETE"), (f"/contexts/{a.id}/restart", {}, None)]:
    assert refused(path, token=theirs._envd_access_token, body=body, method=method) == 401, path
    assert refused(path, traffic=theirs.traffic_access_token, body=body, method=method) == 401, path
assert refused(f"/contexts/{a.id}/restart", theirs._envd_access_token, body={}, sandbox=theirs) == 404
assert a.id in [c.id for c in s.list_code_contexts()]
assert [refused("/nothing", mine), refused("/execute", mine), refused("/execute", mine, body=[1])] == [404, 405, 400]
theirs.kill()

# It stands still while its sandbox does, and goes on with it.
assert s.run_code("paused = 7").error is None
s.pause()
fails(TimeoutException, lambda: s.run_code("1"))
again = Sandbox.connect(s.sandbox_id, timeout=900)
assert again.run_code("paused").text == "7"

# Killed while code runs.
begun = threading.Event()
failed = []
def lost():
    failed.append(fails(TimeoutException, lambda: again.run_code(
        "print('begun', flush=True); import time; time.sleep(100000)", on_stdout=lambda m: begun.set(), timeout=0)))
running = threading.Thread(target=lost)
running.start()
begun.wait()
again.kill()
running.join()
assert len(failed) == 1
fails(TimeoutException, lambda: again.run_code("1"))
print("ok")
