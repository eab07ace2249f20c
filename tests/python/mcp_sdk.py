"""The official Python SDK of MCP as a client of Berth, over both transports and in both kinds of protocol: with a handshake
("legacy": up to 2025-11-25) and without ("auto": what the SDK takes by itself). The SDK holds each answer against the
schema of its tool.

What it is given: BERTH_ADDRESS and BERTH_TOKEN of a cluster with native sandboxes, BERTH (the command `berth`) and
MCP_URL (the coordinator's /mcp).
"""

import base64
import contextlib
import hashlib
import os
import unittest

import anyio
import jsonschema
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client

TOOLS = {
    "artifact_get", "artifact_list", "echo", "fs_edit", "fs_list", "fs_move", "fs_read", "fs_remove", "fs_search", "fs_stat", "fs_write", "pkg_install",
    "port_url", "run_background", "run_python", "run_shell", "session_checkpoint", "session_create", "session_end", "session_info",
    "task_cancel", "task_get_result", "task_get_status", "task_input",
}  # fmt: skip


class Box:
    """A client with a session to work in."""

    def __init__(self, client: Client, session: dict) -> None:
        self.client = client
        self.session = session

    async def call(self, tool, progress=None, **arguments):
        return await self.client.call_tool(tool, {**self.session, **arguments}, progress_callback=progress)

    async def ok(self, tool, **arguments):
        """The structured answer of a tool that did its work."""
        result = await self.call(tool, **arguments)
        assert not result.is_error, result
        assert result.content[0].text, result
        return result.structured_content

    async def refused(self, tool, **arguments) -> str:
        """The text of a tool that refused, which says what to do."""
        result = await self.call(tool, **arguments)
        assert result.is_error, result
        text = result.content[0].text
        assert text.startswith("error: ") and "\nhint: " in text, text
        return text


@contextlib.asynccontextmanager
async def over_stdio(mode, *args, **options):
    """A client of a `berth mcp` of its own."""
    env = {name: os.environ[name] for name in ("BERTH_ADDRESS", "BERTH_TOKEN", "PATH")}
    server = StdioServerParameters(command=os.environ["BERTH"], args=["mcp", *args], env=env)
    async with Client(server, mode=mode, read_timeout_seconds=120, **options) as client:
        yield client


@contextlib.asynccontextmanager
async def over_http(mode, token=None, **options):
    """A client of the coordinator, with a bearer token."""
    headers = {"Authorization": f"Bearer {token or os.environ['BERTH_TOKEN']}"}
    async with create_mcp_http_client(headers=headers) as http:
        async with Client(
            streamable_http_client(os.environ["MCP_URL"], http_client=http),
            mode=mode,
            read_timeout_seconds=120,
            **options,
        ) as client:
            yield client


class Common:
    """What holds for each way in. `connect` is a client's, `box` one with a session."""

    connect = None
    mode = None

    @contextlib.asynccontextmanager
    async def box(self):
        async with type(self).connect(self.mode) as client:
            yield Box(client, {})

    async def test_it_says_who_it_is(self):
        async with type(self).connect(self.mode) as client:
            self.assertEqual(client.server_info.name, "berth")
            self.assertIsNotNone(client.server_capabilities.tools)
            self.assertIn("sandbox", client.instructions)
            legacy = client.protocol_version < "2026-01-01"
            self.assertEqual(legacy, self.mode == "legacy", client.protocol_version)

    async def test_every_tool_has_schemas_that_are_some(self):
        async with type(self).connect(self.mode) as client:
            tools = (await client.list_tools()).tools
        self.assertEqual({tool.name for tool in tools}, TOOLS)
        for tool in tools:
            for schema in (tool.input_schema, tool.output_schema):
                jsonschema.Draft202012Validator.check_schema(schema)
                self.assertEqual(schema["type"], "object", tool.name)
            self.assertIsNotNone(tool.annotations.read_only_hint, tool.name)
            self.assertGreater(len(tool.description), 40)

    async def test_programs(self):
        async with self.box() as box:
            ran = await box.ok("run_shell", command="echo out; echo err >&2; exit 3")
            self.assertEqual((ran["stdout"], ran["stderr"], ran["exit_code"]), ("out\n", "err\n", 3))
            ran = await box.ok("run_shell", command="kill -KILL $$")
            self.assertEqual((ran["outcome"], ran["signal"]), ("signaled", 9))
            ran = await box.ok("run_shell", command="sleep 60", timeout_seconds=1)
            self.assertEqual(ran["outcome"], "timed_out")
            ran = await box.ok("run_python", code="import sys; print(6 * 7, sys.argv[1:])", args=["a b"])
            self.assertEqual(ran["stdout"], "42 ['a b']\n")
            ran = await box.ok("run_python", code="1 / 0")
            self.assertEqual(ran["exit_code"], 1)
            self.assertIn("ZeroDivisionError", ran["stderr"])
            ran = await box.ok("run_shell", command="seq 100000", max_output_bytes=1000)
            self.assertTrue(ran["truncated"])
            self.assertEqual(ran["stdout_bytes"], 588895)

    async def test_files(self):
        async with self.box() as box:
            await box.ok("fs_write", path="src/a.py", contents="x = 1\ny = 2\n")
            self.assertEqual((await box.ok("fs_read", path="src/a.py"))["contents"], "x = 1\ny = 2\n")
            await box.ok("fs_edit", path="src/a.py", old_text="x = 1", new_text="x = 6")
            self.assertEqual((await box.ok("run_shell", command="cat src/a.py"))["stdout"], "x = 6\ny = 2\n")
            text = await box.refused("fs_edit", path="src/a.py", old_text="nowhere", new_text="x")
            self.assertIn("not in the file", text)
            found = await box.ok("fs_search", pattern="^y")
            self.assertEqual([(match["path"], match["line"]) for match in found["matches"]], [("src/a.py", 2)])
            await box.ok("fs_move", source="src/a.py", destination="b.py")
            self.assertEqual((await box.ok("fs_stat", path="b.py"))["size"], 12)
            self.assertEqual([e["path"] for e in (await box.ok("fs_list"))["entries"]], ["b.py", "src"])
            await box.ok("fs_remove", path="b.py")
            self.assertIn("FILE_NOT_FOUND", await box.refused("fs_read", path="b.py"))

    async def test_tasks_in_the_background(self):
        async with self.box() as box:
            task = (await box.ok("run_background", command="cat; echo done"))["task_id"]
            self.assertEqual((await box.ok("task_get_status", task_id=task))["state"], "running")
            await box.ok("task_input", task_id=task, input="hello\n", end=True)
            result = await box.ok("task_get_result", task_id=task, wait_seconds=60)
            self.assertEqual((result["state"], result["stdout"]), ("done", "hello\ndone\n"))
            rest = await box.ok("task_get_result", task_id=task, stdout_offset=6)
            self.assertEqual(rest["stdout"], "done\n")
            task = (await box.ok("run_background", command="sleep 600"))["task_id"]
            self.assertEqual((await box.ok("task_cancel", task_id=task))["end"]["outcome"], "cancelled")

    async def test_what_is_wrong_is_the_tool_s_answer(self):
        async with self.box() as box:
            for arguments in ({"packages": ["--index-url=http://x"]}, {"packages": ["../x"]}, {"packages": ["git+https://x/y"]}):
                self.assertIn("no name of a package", await box.refused("pkg_install", **arguments))
            self.assertIn("egress", await box.refused("pkg_install", packages=["six"]))
            await box.refused("run_shell", command="true", cwd="/nowhere")
            await box.refused("run_shell", command=7)
            await box.refused("run_shell", command="true", unknown=1)
            await box.refused("fs_read")
            await box.refused("task_get_result", task_id="0" * 32)
            with self.assertRaises(MCPError):
                await box.call("no_such_tool")
            # After all of that it works.
            self.assertEqual((await box.ok("run_shell", command="echo on"))["stdout"], "on\n")

    async def test_resources(self):
        async with self.box() as box:
            session = (await box.ok("fs_write", path="a b.txt", contents="text"))["session"]
            uri = f"berth://{session}/a%20b.txt"
            if box.client.protocol_version < "2026-01-01" or not box.session:
                listed = await box.client.list_resources()
                self.assertEqual([(r.uri, r.name, r.size) for r in listed.resources], [(uri, "a b.txt", 4)])
            self.assertEqual((await box.client.read_resource(uri)).contents[0].text, "text")
            await box.ok("fs_write", path="bin", contents="AP8=", encoding="base64")
            read = await box.client.read_resource(f"berth://{session}/bin")
            self.assertEqual(read.contents[0].blob, "AP8=")
            templates = (await box.client.list_resource_templates()).resource_templates
            self.assertTrue(any(template.uri_template == "berth://{session}/{+path}" for template in templates))
            for bad in (f"berth://{session}/none", "file:///etc/passwd", f"berth://{'0' * 32}/a"):
                with self.assertRaises(MCPError):
                    await box.client.read_resource(bad)
            ran = await box.call("run_shell", command="seq 100000", max_output_bytes=1000)
            links = [block for block in ran.content if block.type == "resource_link"]
            self.assertEqual([link.uri.rsplit("/", 1)[1] for link in links], ["stdout"])
            rest = (await box.client.read_resource(links[0].uri)).contents[0]
            self.assertTrue(rest.text.startswith("1\n2\n3\n") and rest.meta["berth/next"].startswith(links[0].uri))

    async def test_images(self):
        async with self.box() as box:
            svg = '<svg xmlns="http://www.w3.org/2000/svg"/>'
            code = f"import os; os.mkdir('artifacts'); open('artifacts/a.svg', 'w').write({svg!r})"
            ran = await box.call("run_python", code=code)
            images = [block for block in ran.content if block.type == "image"]
            self.assertEqual([base64.b64decode(image.data).decode() for image in images], [svg])
            self.assertEqual(images[0].mime_type, "image/svg+xml")
            self.assertEqual(ran.structured_content["images"][0]["path"], "/workspace/artifacts/a.svg")

    async def test_artifacts(self):
        svg = '<svg xmlns="http://www.w3.org/2000/svg"/>'
        async with self.box() as box:
            self.assertEqual((await box.ok("artifact_list"))["artifacts"], [])
            line = f"mkdir -p artifacts/a; printf x > 'artifacts/a/new\nline'; echo '{svg}' > artifacts/i.svg; ln -s /etc artifacts/l"
            await box.ok("run_shell", command=line + "; seq 400000 > artifacts/long.txt; head -c 300 /dev/zero > artifacts/zero.bin")
            listed = await box.ok("artifact_list")
            kept = {artifact["name"]: artifact for artifact in listed["artifacts"]}
            self.assertEqual(sorted(kept), ["a/new\nline", "i.svg", "long.txt", "zero.bin"])
            self.assertEqual([left_out["name"] for left_out in listed["not_kept"]], ["l"])
            session = listed["session"]
            first = await box.ok("artifact_list", limit=3)
            rest = await box.ok("artifact_list", limit=3, after=first["next"])
            self.assertEqual((len(first["artifacts"]), len(rest["artifacts"]), rest.get("next")), (3, 1, None))
            for bad in ({"limit": 0}, {"limit": 501}, {"after": "x"}, {"session": "no-such-name"}):
                await box.refused("artifact_list", **bad)
            for bad in ("x", "0" * 32, "../a"):
                self.assertIn("artifact_list", await box.refused("artifact_get", artifact_id=bad))
            await box.refused("artifact_get", artifact_id=kept["zero.bin"]["artifact_id"], offset=301)
            await box.refused("artifact_get")
            if not box.session:
                await box.ok("session_end", session=session)
        # They outlive their session, and are any client's of the same tenant.
        async with type(self).connect(self.mode) as client:
            box = Box(client, {})
            after = await box.ok("artifact_list", session=session)
            self.assertEqual({a["artifact_id"] for a in after["artifacts"]}, {a["artifact_id"] for a in kept.values()})
            image = await box.call("artifact_get", artifact_id=kept["i.svg"]["artifact_id"])
            self.assertEqual(base64.b64decode(image.content[1].data).decode(), svg + "\n")
            self.assertEqual((image.content[1].mime_type, image.structured_content["encoding"]), ("image/svg+xml", "image"))
            text = await box.ok("artifact_get", artifact_id=kept["a/new\nline"]["artifact_id"])
            self.assertEqual((text["contents"], text["encoding"], text["name"]), ("x", "text", "a/new\nline"))
            zero = await box.ok("artifact_get", artifact_id=kept["zero.bin"]["artifact_id"])
            self.assertEqual((base64.b64decode(zero["contents"]), zero["encoding"]), (bytes(300), "base64"))
            whole, at = "", 0
            while at is not None:
                part = await box.ok("artifact_get", artifact_id=kept["long.txt"]["artifact_id"], offset=at)
                whole, at = whole + part["contents"], part.get("next_offset")
            self.assertEqual(hashlib.sha256(whole.encode()).hexdigest(), kept["long.txt"]["sha256"])

    async def test_an_answer_at_the_maxima_comes(self):
        """Red when any is larger than the SDK takes in one event over HTTP (1 MiB), or when what did not fit is not to be had."""
        code = '''
import os
os.makedirs("artifacts/deep", exist_ok=True)
text = "".join("line %d \\"quoted\\"\\n" % n for n in range(150000))
data = os.urandom(2 << 20)
for at in ("text", "artifacts/text.txt"): open(at, "w").write(text)
for at in ("data", "artifacts/data.bin"): open(at, "wb").write(data)
open("controls", "wb").write(bytes([1]) * (1 << 20))
open("artifacts/large.svg", "w").write('<svg xmlns="http://www.w3.org/2000/svg">' + " " * (3 << 20) + "</svg>")
open("artifacts/fits.svg", "w").write('<svg xmlns="http://www.w3.org/2000/svg">' + " " * (500 << 10) + "</svg>")
long = "".join(("d" * 240) + "/" for _ in range(12))
os.makedirs(long)
for n in range(1200): open(long + "f" * 200 + str(n), "w").write("match " + "m" * 390)
'''
        most = 1 << 20
        async with self.box() as box:
            made = await box.call("run_python", code=code)
            self.assertEqual(made.structured_content["exit_code"], 0, made)
            self.assertEqual([block.type for block in made.content].count("image"), 1)
            self.assertEqual([block.name for block in made.content if block.type == "resource_link"], ["large.svg"])
            session = made.structured_content["session"]

            async def parts(tool, **arguments):
                whole, at, count = b"", 0, 0
                while at is not None:
                    part = await box.ok(tool, offset=at, length=most, **arguments)
                    contents = part["contents"]
                    whole += contents.encode() if part["encoding"] == "text" else base64.b64decode(contents)
                    at, count = part.get("next_offset"), count + 1
                    self.assertLess(count, 40)
                return hashlib.sha256(whole).hexdigest()

            async def summed(path):
                return (await box.ok("run_shell", command=f"sha256sum {path}"))["stdout"].split()[0]

            for path in ("text", "data", "controls"):
                self.assertEqual(await parts("fs_read", path=path), await summed(path), path)
            kept = {a["name"]: a["artifact_id"] for a in (await box.ok("artifact_list", limit=500))["artifacts"]}
            for name in ("text.txt", "data.bin", "large.svg"):
                self.assertEqual(await parts("artifact_get", artifact_id=kept[name]), await summed(f"artifacts/{name}"), name)
            image = await box.call("artifact_get", artifact_id=kept["fits.svg"])
            self.assertEqual([block.type for block in image.content], ["text", "image"])
            self.assertFalse((await box.call("artifact_get", artifact_id=kept["large.svg"])).is_error)
            for command in ("cat text; cat text >&2", "cat controls data; cat data >&2"):
                ran = await box.call("run_shell", command=command, max_output_bytes=most)
                self.assertTrue(ran.structured_content["truncated"])
                self.assertIn("task_get_result", ran.content[0].text)
                for encoding in ("text", "base64"):
                    read = await box.ok("task_get_result", task_id=ran.structured_content["task_id"], max_bytes=most, encoding=encoding)
                    self.assertTrue(read["more"] and read["stdout_next"] > 50_000, read["stdout_next"])
                links = [block for block in ran.content if block.type == "resource_link"]
                self.assertEqual(len(links), 2)
                for link in links:
                    await box.client.read_resource(link.uri)
            found = await box.ok("fs_search", pattern="match", max_matches=1000, context=20)
            self.assertIn("room", found["incomplete"])
            listed = await box.ok("fs_list", depth=64)
            self.assertTrue(listed["truncated"] and listed["entries"])
            if box.client.protocol_version < "2026-01-01" or not box.session:
                self.assertTrue((await box.client.list_resources()).resources)
            with self.assertRaises(MCPError):
                await box.client.read_resource(f"berth://{session}/data")
            at, count = f"berth://{session}/data?offset=0", 0
            while at:
                read = (await box.client.read_resource(at)).contents[0]
                at, count = read.meta.get("berth/next"), count + 1
            self.assertLess(count, 10)
            self.assertIn("ask for less", await box.refused("echo", message="x" * (2 << 20)) if not box.session else "ask for less")

    async def test_changes_are_told(self):
        told = anyio.Event()

        async def on_message(message):
            if getattr(message, "method", "") == "notifications/resources/updated":
                told.set()

        async with type(self).connect(self.mode, message_handler=on_message) as client:
            box = Box(client, {})
            box.session = {"session": (await box.ok("session_create"))["session"]}
            uri = f"berth://{box.session['session']}/seen"
            if client.protocol_version < "2026-01-01":
                await client.subscribe_resource(uri)
                await box.ok("fs_write", path="seen", contents="x")
                with anyio.fail_after(120):
                    await told.wait()
                await client.unsubscribe_resource(uri)
            else:
                async with client.listen(resource_subscriptions=[uri]) as events:
                    self.assertEqual(events.honored.resource_subscriptions, [uri])

                    async def write():
                        # Over HTTP what changes before the stream has looked is not told.
                        for count in range(1, 1000):
                            await box.ok("fs_write", path="seen", contents="x" * count)
                            await anyio.sleep(1)

                    with anyio.fail_after(120):
                        async with anyio.create_task_group() as group:
                            group.start_soon(write)
                            async for event in events:
                                self.assertEqual(event.uri, uri)
                                group.cancel_scope.cancel()
                                break
            await box.ok("session_end")

    async def test_progress_is_told(self):
        told = []

        async def progress(done, total, message):
            told.append((done, message))

        async with self.box() as box:
            line = "for i in 1 2 3 4; do echo step $i; sleep 1; done"
            result = await box.call("run_shell", progress, command=line)
        self.assertEqual(result.structured_content["exit_code"], 0)
        self.assertGreaterEqual(len(told), 2)
        self.assertEqual(told, sorted(told, key=lambda step: step[0]))
        self.assertTrue(any("step" in (message or "") for _, message in told), told)

    async def test_calls_at_once(self):
        async with self.box() as box:
            outputs = {}

            async def run(number):
                outputs[number] = (await box.ok("run_shell", command=f"sleep 0.2; echo {number}"))["stdout"]

            async with anyio.create_task_group() as group:
                for number in range(12):
                    group.start_soon(run, number)
            self.assertEqual(outputs, {number: f"{number}\n" for number in range(12)})

    async def test_a_call_that_is_given_up_ends_its_task(self):
        async with self.box() as box:
            with anyio.move_on_after(1.5):
                await box.call("run_shell", command="echo $$ > pid; exec sleep 600")
            pid = (await box.ok("fs_read", path="pid"))["contents"].strip()
            line = f"for i in $(seq 300); do kill -0 {pid} 2>/dev/null || exit 0; sleep 0.1; done; exit 1"
            self.assertEqual((await box.ok("run_shell", command=line))["exit_code"], 0)

    async def test_two_clients_share_nothing(self):
        async with self.box() as one, self.box() as two:
            await one.ok("fs_write", path="mine", contents="1")
            self.assertIn("FILE_NOT_FOUND", await two.refused("fs_read", path="mine"))
            ids = {(await box.ok("session_info"))["session"] for box in (one, two)}
            self.assertEqual(len(ids), 2)

    async def test_a_named_session_is_come_back_to(self):
        name = f"kept-{type(self).__name__.lower()}"
        async with type(self).connect(self.mode) as client:
            await Box(client, {}).ok("session_create", name=name)
            await Box(client, {"session": name}).ok("fs_write", path="note", contents="still here")
        async with type(self).connect(self.mode) as client:
            box = Box(client, {"session": name})
            self.assertEqual((await box.ok("fs_read", path="note"))["contents"], "still here")
            await box.ok("session_end")
            self.assertIn("no session is called", await box.refused("fs_read", path="note"))


class StdioLegacy(Common, unittest.IsolatedAsyncioTestCase):
    connect, mode = staticmethod(over_stdio), "legacy"

    async def test_a_client_that_comes_again_has_a_session_of_its_own(self):
        seen = []
        for _ in range(2):
            async with self.box() as box:
                seen.append((await box.ok("session_info"))["session"])
                self.assertEqual((await box.ok("fs_list"))["entries"], [])
                await box.ok("fs_write", path="left", contents="x")
        self.assertNotEqual(seen[0], seen[1])

    async def test_a_session_that_was_named_to_it_stays(self):
        async with self.box() as other:
            made = (await other.ok("session_create"))["session"]
            async with over_stdio("legacy", "--session", made) as client:
                await Box(client, {}).ok("fs_write", path="left", contents="for you")
            there = Box(other.client, {"session": made})
            self.assertEqual((await there.ok("fs_read", path="left"))["contents"], "for you")


class StdioAuto(Common, unittest.IsolatedAsyncioTestCase):
    connect, mode = staticmethod(over_stdio), "auto"


class HttpLegacy(Common, unittest.IsolatedAsyncioTestCase):
    connect, mode = staticmethod(over_http), "legacy"

    async def test_a_conversation_that_ended_is_not_come_back_to(self):
        async with self.box() as box:
            first = (await box.ok("session_info"))["session"]
        async with self.box() as box:
            self.assertNotEqual((await box.ok("session_info"))["session"], first)

    async def test_a_wrong_token_gets_nothing(self):
        for mode in ("legacy", "auto"):
            with self.assertRaises(BaseException) as caught:
                async with over_http(mode, "no-such-token") as client:
                    await client.list_tools()
            self.assertNotIsInstance(caught.exception, AssertionError)


class HttpAuto(Common, unittest.IsolatedAsyncioTestCase):
    """Without a handshake there is no conversation over HTTP: each call names its session."""

    connect, mode = staticmethod(over_http), "auto"

    @contextlib.asynccontextmanager
    async def box(self):
        async with over_http(self.mode) as client:
            made = {"session": (await Box(client, {}).ok("session_create"))["session"]}
            try:
                yield Box(client, made)
            finally:
                await Box(client, made).ok("session_end")

    async def test_a_call_must_name_its_session(self):
        async with over_http(self.mode) as client:
            self.assertIn("session_create", await Box(client, {}).refused("run_shell", command="true"))


if __name__ == "__main__":

    unittest.main()
