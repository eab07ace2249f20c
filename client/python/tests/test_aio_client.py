"""The client against a real cluster, which BERTH_ADDRESS and BERTH_TOKEN name. test_client.py is this without `await`."""

import datetime
import io
import os
import signal
import tarfile
import unittest
import uuid

import berth
import berth.aio

from .aio_case import Case
from .proxy import Proxy

LINES = 400


class ClientTest(Case):
    # ---- what runs ---------------------------------------------------------

    async def test_a_program_says_how_it_ended_and_what_it_used(self) -> None:
        code = "import sys; print(sum(range(3_000_000))); print('oh', file=sys.stderr); sys.exit(3)"
        output = await self.session.run(["python3", "-c", code])
        self.assertEqual((output.stdout, output.stderr), (b"4499998500000\n", b"oh\n"))
        self.assertEqual(output.outcome, berth.Outcome("exited", code=3))
        self.assertEqual((output.code, output.ok, output.truncated), (3, False, False))
        self.assertGreater(output.usage.cpu_user + output.usage.cpu_system, 0)
        self.assertGreater(output.duration, 0)
        with self.assertRaisesRegex(berth.TaskFailed, "exited with 3: oh"):
            output.check()
        self.assertTrue((await self.session.run("true")).check().ok)

    async def test_how_a_task_may_end_otherwise(self) -> None:
        timed_out = await self.session.run("echo first; sleep 60", timeout=datetime.timedelta(seconds=0.5))
        self.assertEqual((timed_out.outcome.kind, timed_out.stdout), ("timed_out", b"first\n"))
        self.assertIsNone(timed_out.code)
        killed = await self.session.run("kill -KILL $$")
        self.assertEqual(killed.outcome, berth.Outcome("signaled", signal=9))
        flood = await self.session.run("yes", output_limit=10_000, timeout=60)
        self.assertEqual(flood.outcome.kind, "output_limit")

    async def test_a_command_is_a_line_or_a_list(self) -> None:
        self.assertEqual((await self.session.run("echo $((6 * 7)); echo '*'")).stdout, b"42\n*\n")
        self.assertEqual((await self.session.run(["echo", "$HOME", "*"])).stdout, b"$HOME *\n")
        await self.session.files.mkdir("in/here", parents=True)
        told = await self.session.run("pwd; echo $NAME", cwd="in/here", env={"NAME": "grüße"})
        self.assertEqual(told.stdout_text, "/workspace/in/here\ngrüße\n")
        await self.refused(berth.Reason.CWD_NOT_FOUND, self.session.run, "true", cwd="nowhere")
        await self.refused("INVALID_FIELD", self.session.run, [])

    async def test_input_goes_in_whole(self) -> None:
        data = os.urandom(1 << 20)
        output = await self.session.run("cat", input=data)
        self.assertEqual(output.stdout, data)
        self.assertEqual((await self.session.run("wc -c", input="grüße")).stdout.strip(), b"7")
        # One that ends before it has read all of it.
        self.assertTrue((await self.session.run("true", input=data)).ok)
        self.assertEqual((await self.session.run("cat")).stdout, b"")

    async def test_what_is_collected_is_bounded(self) -> None:
        output = await self.session.run("seq 100000; seq 5 >&2", collect_limit=10)
        self.assertEqual((output.stdout, output.stderr), (b"1\n2\n3\n4\n5\n", b"1\n2\n3\n4\n5\n"))
        self.assertTrue(output.truncated)

    async def test_secrets_are_files_or_variables_of_one_task(self) -> None:
        output = await self.session.run("cat /run/secrets/python-test", secrets=["python-test"])
        self.assertEqual(output.stdout, b"sesame")
        output = await self.session.run("echo $KEY", secrets={"KEY": "python-test"})
        self.assertEqual(output.stdout, b"sesame\n")
        self.assertEqual((await self.session.run("echo $KEY")).stdout, b"\n")
        error = await self.refused(berth.Reason.SECRET_UNUSABLE, self.session.run, "true", secrets=["nope"])
        self.assertEqual(error.details["secret"], "nope")

    async def test_a_terminal(self) -> None:
        size = berth.PtySize(cols=101, rows=33)
        async with await self.session.stream("stty size; read line; stty size", pty=size) as stream:
            self.assertEqual((await stream.next()).data, b"33 101\r\n")
            await stream.task.resize(berth.PtySize(cols=50, rows=20))
            await stream.task.write_stdin("\n")
            rest = b"".join([event.data async for event in stream if isinstance(event, berth.Stdout)])
        self.assertTrue(rest.endswith(b"20 50\r\n"), rest)

    async def test_the_same_request_id_starts_one_task(self) -> None:
        key = uuid.uuid4().hex
        first = await self.session.run("echo x >> log; cat log", request_id=key)
        again = await self.session.run("echo x >> log; cat log", request_id=key)
        self.assertEqual((first.task, first.stdout), (again.task, b"x\n"))
        await self.refused(berth.Reason.REQUEST_ID_REUSED, self.session.run, "echo other", request_id=key)

    # ---- tasks -------------------------------------------------------------

    async def test_a_task_is_fed_watched_and_cancelled(self) -> None:
        task = await self.session.start("cat", stdin=True)
        self.assertEqual((await task.wait(0.1)).state, "running")
        await task.write_stdin("one\n")
        await task.write_stdin(b"two\n")
        async with await task.watch(stdout_offset=2) as stream:
            got = b""
            while len(got) < 6:
                event = await stream.next()
                got += event.data
            self.assertEqual(got, b"e\ntwo\n")
            self.assertEqual((stream.stdout_offset, stream.stderr_offset), (8, 0))
        self.assertIn(task.id, [info.id for info in await self.session.tasks(running_only=True)])
        await task.close_stdin()
        done = await task.wait()
        self.assertEqual((done.state, done.end.outcome), ("done", berth.Outcome("exited", code=0)))
        self.assertEqual((done.stdout.length, done.shell), (8, "cat"))
        await self.refused(berth.Reason.TASK_DONE, task.write_stdin, "more")
        self.assertEqual(await self.session.tasks(running_only=True), [])

        stubborn = await self.session.start("trap '' TERM; echo ready; while :; do sleep 0.1; done")
        async with await stubborn.watch() as stream:
            self.assertEqual((await stream.next()).data, b"ready\n")
        ended = await stubborn.cancel(grace=0.2)
        self.assertEqual(ended.end.outcome.kind, "cancelled")
        self.assertEqual((await stubborn.cancel()).id, stubborn.id)

        told = await self.session.start("trap 'echo told; exit 5' USR1; echo ready; while :; do sleep 0.1; done")
        async with await told.watch() as stream:
            self.assertEqual((await stream.next()).data, b"ready\n")
            await told.signal(signal.SIGUSR1)
            events = [event async for event in stream]
        self.assertIn(berth.Stdout(b"told\n"), events)
        self.assertEqual(events[-1].info.end.outcome.code, 5)
        await self.refused(berth.Reason.TASK_NOT_FOUND, self.session.task("0" * 32).info)

    async def test_output_that_is_no_longer_kept_is_told(self) -> None:
        task = await self.session.start("seq 100000", spool_bytes=100_000)
        end = (await task.wait()).stdout
        self.assertGreater(end.first_kept, 0)
        async with await task.watch() as stream:
            events = [event async for event in stream]
        lost = events[0]
        self.assertEqual(lost, berth.Lost("stdout", 0, lost.end))
        kept = b"".join(event.data for event in events if isinstance(event, berth.Stdout))
        self.assertEqual(lost.end + len(kept), end.length)
        self.assertTrue(kept.endswith(b"\n99999\n100000\n"))
        error = await self.refused(berth.Reason.OUTPUT_LOST, task.watch, skip_lost=False)
        self.assertGreaterEqual(int(error.details["first_kept"]), end.first_kept)
        output = await self.session.run("seq 100000; sleep 0.1", spool_bytes=1_000_000)
        self.assertEqual(len(output.stdout), end.length)

    async def test_what_there_is_now(self) -> None:
        task = await self.session.start("echo here; sleep 60")
        async with await task.watch() as stream:
            await stream.next()
        async with await task.watch(follow=False) as stream:
            self.assertEqual([event async for event in stream], [berth.Stdout(b"here\n")])
        await task.cancel(grace=0)

    # ---- connections that break --------------------------------------------

    async def test_a_stream_goes_on_at_the_byte_where_it_broke(self) -> None:
        proxy = Proxy(self.client.address)
        self.addCleanup(proxy.close)
        line = f"for i in $(seq {LINES}); do echo line $i; echo error $i >&2; sleep 0.01; done"
        async with await berth.aio.Client.connect(proxy.address, token=os.environ["BERTH_TOKEN"]) as client:
            stdout, stderr, events = b"", b"", 0
            async with await client.attach(self.session.id).stream(line) as stream:
                async for event in stream:
                    events += 1
                    stdout += event.data if isinstance(event, berth.Stdout) else b""
                    stderr += event.data if isinstance(event, berth.Stderr) else b""
                    if events in (5, 40, 120):
                        proxy.cut()
        self.assertEqual(stdout.decode(), "".join(f"line {i}\n" for i in range(1, LINES + 1)))
        self.assertEqual(stderr.decode(), "".join(f"error {i}\n" for i in range(1, LINES + 1)))
        self.assertEqual(proxy.cuts, 3)
        self.assertEqual(event.info.end.outcome.code, 0)

    async def test_a_stream_that_can_not_be_resumed_says_so_and_where(self) -> None:
        proxy = Proxy(self.client.address)
        self.addCleanup(proxy.close)
        token = os.environ["BERTH_TOKEN"]
        async with await berth.aio.Client.connect(proxy.address, token=token, resume_for=0.5) as client:
            stream = await client.attach(self.session.id).stream("echo here; sleep 60")
            self.assertEqual((await stream.next()).data, b"here\n")
            proxy.refuse(True)
            proxy.cut()
            with self.assertRaises(berth.BerthError) as caught:
                await stream.next()
            self.assertTrue(caught.exception.is_temporary, caught.exception)
            self.assertIn(proxy.address, str(caught.exception))
            self.assertEqual(stream.stdout_offset, 5)
            self.assertIsNone(await stream.next())
            proxy.refuse(False)
            # Elsewhere, and later: nothing of it is lost.
            again = self.session.task(stream.task.id)
            async with await again.watch(stdout_offset=stream.stdout_offset, follow=False) as rest:
                self.assertIsNone(await rest.next())
            await again.cancel(grace=0)

    async def test_a_call_that_is_safe_to_repeat_is_repeated(self) -> None:
        proxy = Proxy(self.client.address)
        self.addCleanup(proxy.close)
        async with await berth.aio.Client.connect(proxy.address, token=os.environ["BERTH_TOKEN"]) as client:
            session = client.attach(self.session.id)
            for _ in range(5):
                proxy.cut()
                self.assertEqual((await session.info()).state, "ready")
            self.assertEqual(proxy.cuts, 5)

    # ---- files -------------------------------------------------------------

    async def test_files_go_in_and_come_back(self) -> None:
        files = self.session.files
        data = os.urandom((3 << 20) + 17)
        info = await files.write("deep/er/data", data, make_parents=True, mode=0o750)
        self.assertEqual((info.size, info.mode, info.type), (len(data), 0o750, "file"))
        self.assertEqual(await files.read("deep/er/data"), data)
        self.assertEqual(await files.read("deep/er/data", offset=1 << 20, length=5), data[1 << 20 : (1 << 20) + 5])
        await files.write("text", "grüße\n")
        self.assertEqual(await files.read_text("text"), "grüße\n")
        await files.write("pieces", [b"a", b"", b"b" * 300_000])
        self.assertEqual((await files.stat("pieces")).size, 300_001)
        await files.write("empty", b"")
        self.assertEqual(await files.read("empty"), b"")
        with self.assertRaisesRegex(berth.BerthError, "not UTF-8"):
            await files.read_text("deep/er/data")
        listed = {entry.path: entry for entry in await files.list("deep", depth=2)}
        self.assertEqual(sorted(listed), ["er", "er/data"])
        self.assertTrue(listed["er"].is_dir and listed["er/data"].is_file)
        await self.session.run("ln -s text link")
        self.assertEqual((await files.stat("link")).symlink_target, "text")
        self.assertEqual((await files.stat("link", follow=True)).type, "file")

    async def test_a_context_remembers(self) -> None:
        context = await self.session.create_context(cwd="/tmp", env={"A": "1"})
        self.assertTrue((await context.run("import os; x = 20")).ok)
        ran = await context.run("print(os.getcwd(), os.environ['A']); x + 1", env={"B": "2"})
        self.assertEqual((ran.stdout, ran.text, ran.error, ran.number), (b"/tmp 1\n", "21", None, 2))
        ran = await context.run("1 / 0")
        self.assertEqual((ran.ok, ran.outcome, ran.error.name), (False, "error", "ZeroDivisionError"))
        self.assertIn("1 / 0", ran.error.traceback)
        self.assertEqual((await context.run("while True: pass", timeout=0.5)).outcome, "timed_out")
        [info] = await self.session.contexts()
        self.assertEqual((info.id, info.executions, info.cwd), (context.id, 4, "/tmp"))
        await context.interrupt()
        await context.restart()
        self.assertEqual((await self.session.context(context.id).run("x")).error.name, "NameError")
        await context.delete()
        await self.refused(berth.Reason.CONTEXT_NOT_FOUND, context.run, "1")

    async def test_files_are_searched(self) -> None:
        files = self.session.files
        await files.write("s/a.py", "one\nNeedle 1\nthree\n", make_parents=True)
        await files.write("s/deep/b.py", "needle 2\n", make_parents=True)
        await files.write("s/c.txt", "needle.3\n")
        found = await files.search(r"needle \d", "s", ignore_case=True, context=1)
        self.assertEqual([(one.path, one.line) for one in found.matches], [("a.py", 2), ("deep/b.py", 1)])
        self.assertEqual((found.matches[0].before, found.matches[0].after), (["one"], ["three"]))
        self.assertEqual((found.files_searched, found.files_skipped, found.limit), (3, 0, None))
        found = await files.search("e.3", "s", literal=True, globs=["*.txt"], exclude=["deep"], time_limit=30)
        self.assertEqual([one.text for one in found.matches], ["needle.3"])
        self.assertEqual((await files.search("needle", "s", max_matches=1)).limit, "matches")
        await self.refused(berth.Reason.INVALID_FIELD, files.search, "(")

    async def test_archives_go_out_and_in(self) -> None:
        files = self.session.files
        await files.write("d/a", "one", make_parents=True)
        await files.write("d/b/c", b"x" * 1_000_000, make_parents=True)
        archive = b""
        async for piece in files.pack("d", prefix="top", exclude=["nothing"]):
            archive += piece
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            self.assertEqual(sorted(opened.getnames()), ["top", "top/a", "top/b", "top/b/c"])
        done = await files.unpack("e/f", [archive[:700], archive[700:]], make_parents=True)
        self.assertEqual((done.files, done.directories, done.bytes), (2, 2, 1_000_003))
        self.assertEqual(await files.read_text("e/f/top/a"), "one")
        error = await self.refused(berth.Reason.INVALID_FIELD, files.unpack, "e", archive[:5000])
        self.assertEqual(error.details["files"], "1")

    async def test_a_directory_is_watched(self) -> None:
        files = self.session.files
        await files.mkdir("w")
        async with await files.watch("w", recursive=True, include_entry=True) as changes:
            await files.mkdir("w/in")
            change = await changes.__anext__()
            self.assertEqual((change.kind, change.path, change.directory), ("created", "in", True))
            self.assertEqual(change.entry.type, "directory")
            await files.remove("w", recursive=True)
            kinds = {change.kind async for change in changes}
            self.assertIn("removed", kinds)
        await self.refused(berth.Reason.FILE_NOT_FOUND, files.watch, "w")

    async def test_files_are_moved_and_removed(self) -> None:
        files = self.session.files
        await files.mkdir("a")
        await self.refused(berth.Reason.FILE_EXISTS, files.mkdir, "a")
        await files.mkdir("a/b/c", parents=True)
        await files.write("one", "1")
        await files.write("two", "2")
        await self.refused(berth.Reason.FILE_EXISTS, files.move, "one", "two")
        await files.move("one", "two", overwrite=True)
        self.assertEqual(await files.read("two"), b"1")
        self.assertFalse(await files.exists("one"))
        await self.refused(berth.Reason.DIRECTORY_NOT_EMPTY, files.remove, "a")
        await files.remove("a", recursive=True)
        await files.remove("two")
        self.assertEqual(await files.list(), [])
        for call in (files.read, files.stat, files.remove, files.list):
            await self.refused(berth.Reason.FILE_NOT_FOUND, call, "two")
        # Often: the answer may come while the file is still being sent.
        for _ in range(50):
            await self.refused(berth.Reason.FILE_DENIED, files.write, "/etc/passwd", "me")

    async def test_an_upload_that_fails_halfway_leaves_the_file_as_it_was(self) -> None:
        await self.session.files.write("file", "before")

        def fails():
            yield b"x" * 1_000_000
            raise RuntimeError("the source broke")

        with self.assertRaisesRegex(RuntimeError, "the source broke"):
            await self.session.files.write("file", fails())
        self.assertEqual(await self.session.files.read("file"), b"before")
        self.assertEqual([entry.path for entry in await self.session.files.list()], ["file"])

    # ---- sessions ----------------------------------------------------------

    async def test_a_session_has_what_it_was_made_with(self) -> None:
        name = "n" + uuid.uuid4().hex[:8]
        limits = berth.Limits(cpu_millis=500, memory_bytes=128 << 20, pids=64)
        egress = berth.Egress(allow=["example.org:443"])
        made = await self.client.create_session(
            name=name, limits=limits, env={"WHO": "me"}, ttl=60, idle_timeout=30, egress=egress, task_timeout=5
        )
        info = await made.info()
        self.assertEqual((info.state, info.template, info.labels["name"]), ("ready", "base", name))
        self.assertEqual((info.limits.cpu_millis, info.limits.memory_bytes, info.limits.pids), (500, 128 << 20, 64))
        self.assertEqual((info.idle_timeout, info.egress.allow), (30, ("example.org:443",)))
        self.assertEqual(info.expires_at - info.created_at, datetime.timedelta(seconds=60))
        self.assertEqual((await made.run("echo $WHO")).stdout, b"me\n")
        self.assertEqual([s.id for s in await self.client.list_sessions(labels={"name": name})], [made.id])
        await self.refused(berth.Reason.NAME_TAKEN, self.client.create_session, name=name)
        updated = await made.update(set_labels={"a": "b"}, remove_labels=["name"], ttl=0)
        self.assertEqual((dict(updated.labels), updated.expires_at), ({"a": "b"}, None))
        self.assertEqual((await made.pause()).state, "paused")
        await self.refused(berth.Reason.SESSION_PAUSED, made.run, "true")
        self.assertEqual((await made.resume()).state, "ready")
        self.assertIn((await self.client.delete_session(made.id)).state, ("ending", "ended"))
        await made.delete()
        ended = await self.client.get_session(made.id)
        self.assertEqual((ended.state, ended.end_reason), ("ended", "deleted"))
        self.assertIn(made.id, [s.id for s in await self.client.list_sessions(states=["ended"])])
        await self.refused(berth.Reason.SESSION_ENDED, made.run, "true")
        await self.refused(berth.Reason.SESSION_NOT_FOUND, self.client.get_session, "0" * 32)

    async def test_a_with_ends_its_session_whatever_happens(self) -> None:
        async with self.client.session(ttl=60) as session:
            self.assertTrue((await session.run("true")).ok)
        self.assertEqual((await session.info()).state, "ended")
        with self.assertRaises(ZeroDivisionError):
            async with self.client.session(ttl=60) as session:
                1 / 0
        self.assertEqual((await session.info()).state, "ended")

    async def test_checkpoints_forks_and_restores(self) -> None:
        await self.session.files.write("note", "kept")
        taken = await self.session.checkpoint(note="a note", keep_for=3600)
        self.assertEqual((taken.note, taken.cause, taken.session), ("a note", "requested", self.session.id))
        await self.session.files.write("note", "changed")
        old = await self.client.restore(taken.id, ttl=60)
        self.assertEqual(await old.files.read("note"), b"kept")
        await old.delete()
        (one, two), forked = await self.session.fork(2, ttl=60)
        self.assertEqual([await one.files.read("note"), await two.files.read("note")], [b"changed"] * 2)
        await one.delete()
        await two.delete()
        listed = [checkpoint.id for checkpoint in await self.client.list_checkpoints(self.session.id)]
        self.assertEqual(listed, [forked.id, taken.id])
        for checkpoint in listed:
            await self.client.delete_checkpoint(checkpoint)
        await self.refused(berth.Reason.CHECKPOINT_NOT_FOUND, self.client.get_checkpoint, taken.id)

    # ---- who gets it wrong -------------------------------------------------

    async def test_a_wrong_token_is_told_what_to_do(self) -> None:
        async with await berth.aio.Client.connect(token="berth_wrong") as client:
            with self.assertRaises(berth.BerthError) as caught:
                await client.list_sessions()
            self.assertEqual(caught.exception.code.name, "UNAUTHENTICATED")
            self.assertIn("BERTH_TOKEN", caught.exception.hint)

    async def test_a_client_that_is_closed_says_so(self) -> None:
        client = await berth.aio.Client.connect()
        session = client.attach(self.session.id)
        await client.close()
        for call, *args in ((session.info,), (session.run, "true"), (session.files.read, "x"), (session.files.write, "x", "y")):
            error = await self.refused(None, call, *args)
            self.assertEqual(error.message, "the client is closed")
            self.assertFalse(error.in_doubt)

    async def test_nothing_there_is_said_in_plain_words(self) -> None:
        proxy = Proxy("127.0.0.1:1")
        address = proxy.address
        proxy.close()
        with self.assertRaises(berth.BerthError) as caught:
            await berth.aio.Client.connect(address)
        self.assertEqual(caught.exception.message, f"no coordinator answers at {address}")
        self.assertTrue(caught.exception.is_not_connected and not caught.exception.in_doubt)

    async def test_a_value_that_is_none_is_refused_before_it_is_sent(self) -> None:
        for wrong in (
            {"ttl": -1},
            {"ttl": float("nan")},
            {"on_worker_loss": "explode"},
            {"limits": berth.Limits(pids=-1)},
            {"env": {"A": 1}},
        ):
            with self.assertRaises(berth.BerthError, msg=str(wrong)) as caught:
                await self.client.create_session(**wrong)
            self.assertEqual(caught.exception.code.name, "INVALID_ARGUMENT")
        with self.assertRaises(berth.BerthError):
            await self.client.list_sessions(states=["asleep"])
        with self.assertRaises(berth.BerthError):
            await self.session.run("true", secrets="one")


if __name__ == "__main__":
    unittest.main()
