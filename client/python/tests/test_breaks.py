"""What a lost answer and parallel work must not do, against a real cluster: see test_aio_client.py."""

import asyncio
import concurrent.futures
import os
import threading
import time
import unittest
from unittest import mock

import berth
import berth.aio

from .proxy import Proxy

LINE = "echo x >> log; cat log"


def until(what, ask, seconds=60):
    """Asks again and again until the answer is true."""
    end = time.monotonic() + seconds
    while not ask():
        if time.monotonic() > end:
            raise AssertionError(f"waited in vain for {what}")
        time.sleep(0.01)


class BreaksTest(unittest.TestCase):
    def setUp(self) -> None:
        self.client = berth.Client.connect()
        self.addCleanup(self.client.close)
        self.session = self.client.create_session(ttl=600)
        self.addCleanup(self.session.delete)
        self.proxy = Proxy(self.client.address)
        self.addCleanup(self.proxy.close)

    def lose_the_answer(self, runs) -> None:
        """Cuts the connection when the task has run and nothing of it has come through."""
        until("the task", lambda: [task.state for task in self.session.tasks()] == ["done"])
        self.assertFalse(runs(), "its answer is held back")
        self.proxy.cut()
        self.proxy.hold_down(False)

    def check(self, output: berth.Output) -> None:
        self.assertEqual(output.stdout, b"x\n")
        self.assertEqual(self.session.files.read("log"), b"x\n")
        self.assertEqual([task.id for task in self.session.tasks()], [output.task])

    def test_a_run_whose_answer_is_lost_runs_once(self) -> None:
        with berth.Client.connect(self.proxy.address, token=os.environ["BERTH_TOKEN"]) as client:
            session = client.attach(self.session.id)
            session.info()
            self.proxy.hold_down(True)
            with concurrent.futures.ThreadPoolExecutor() as pool:
                run = pool.submit(session.run, LINE)
                self.lose_the_answer(run.done)
                self.check(run.result(60))

    def test_a_start_whose_answer_is_lost_starts_once(self) -> None:
        with berth.Client.connect(self.proxy.address, token=os.environ["BERTH_TOKEN"]) as client:
            session = client.attach(self.session.id)
            session.info()
            self.proxy.hold_down(True)
            with concurrent.futures.ThreadPoolExecutor() as pool:
                start = pool.submit(session.start, LINE)
                self.lose_the_answer(start.done)
                self.assertEqual([task.id for task in self.session.tasks()], [start.result(60).id])

    def test_an_async_run_whose_answer_is_lost_runs_once(self) -> None:
        async def run() -> berth.Output:
            token = os.environ["BERTH_TOKEN"]
            async with await berth.aio.Client.connect(self.proxy.address, token=token) as client:
                session = client.attach(self.session.id)
                await session.info()
                self.proxy.hold_down(True)
                task = asyncio.ensure_future(session.run(LINE))
                await asyncio.get_running_loop().run_in_executor(None, self.lose_the_answer, task.done)
                return await task

        self.check(asyncio.run(run()))

    def test_being_cancelled_loses_no_event(self) -> None:
        """`next` under a timeout that it does not keep, again and again: no byte is missing in the end."""

        async def run() -> bytes:
            async with await berth.aio.Client.connect() as client:
                session = client.attach(self.session.id)
                got, waits = b"", 0
                async with await session.stream("for i in $(seq 50); do echo $i; sleep 0.02; done") as stream:
                    while True:
                        try:
                            event = await asyncio.wait_for(stream.next(), 0.005)
                        except asyncio.TimeoutError:
                            waits += 1
                            continue
                        if event is None:
                            self.assertGreater(waits, 10)
                            return got
                        got += event.data if isinstance(event, berth.Stdout) else b""

        self.assertEqual(asyncio.run(run()).split(), [b"%d" % i for i in range(1, 51)])

    def test_a_stream_that_falls_silent_is_opened_anew(self) -> None:
        """Red without the watchdog: a server that is gone without a word would be waited for for ever."""
        line = "echo a; sleep 3; echo b"
        broke = berth.TaskStream._broke
        with mock.patch("berth._sync._transport.SILENCE", 0.3):
            with mock.patch.object(berth.TaskStream, "_broke", autospec=True, side_effect=broke) as breaks:
                self.assertEqual(self.session.run(line).stdout, b"a\nb\n")
        self.assertGreater(breaks.call_count, 0)

        async def run() -> bytes:
            async with await berth.aio.Client.connect() as client:
                return (await client.attach(self.session.id).run(line)).stdout

        broke = berth.aio.TaskStream._broke
        with mock.patch("berth.aio._transport.SILENCE", 0.3):
            with mock.patch.object(berth.aio.TaskStream, "_broke", autospec=True, side_effect=broke) as breaks:
                self.assertEqual(asyncio.run(run()), b"a\nb\n")
        self.assertGreater(breaks.call_count, 0)
        self.assertEqual(len(self.session.tasks()), 2)

    def test_an_upload_that_nobody_answers_is_given_up(self) -> None:
        token = os.environ["BERTH_TOKEN"]
        with berth.Client.connect(self.proxy.address, token=token) as client:
            self.proxy.hold_down(True)
            with mock.patch("berth._sync._transport.SILENCE", 0.3), self.assertRaises(berth.BerthError) as caught:
                client.attach(self.session.id).files.write("file", b"x")
        self.assertEqual(caught.exception.code.name, "DEADLINE_EXCEEDED")
        self.assertTrue(caught.exception.in_doubt)
        self.proxy.hold_down(False)

        async def write() -> None:
            async with await berth.aio.Client.connect(self.proxy.address, token=token) as client:
                self.proxy.hold_down(True)
                await client.attach(self.session.id).files.write("file", b"x")

        with mock.patch("berth.aio._transport.SILENCE", 0.3), self.assertRaises(berth.BerthError) as caught:
            asyncio.run(write())
        self.assertEqual(caught.exception.code.name, "DEADLINE_EXCEEDED")

    def test_one_client_is_used_by_many(self) -> None:
        """More runs at once than a connection has streams for none to wait: all come to their end, with their own output."""
        sessions = [self.client.create_session(ttl=600) for _ in range(3)]
        for session in sessions:
            self.addCleanup(session.delete)

        def run(number: int) -> bytes:
            return sessions[number % 3].run(f"echo {number}").stdout

        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            self.assertEqual(list(pool.map(run, range(60))), [b"%d\n" % number for number in range(60)])

        async def many() -> list:
            async with await berth.aio.Client.connect() as client:
                runs = [client.attach(sessions[i % 3].id).run(f"echo {i}") for i in range(30)]
                return [output.stdout for output in await asyncio.gather(*runs)]

        self.assertEqual(asyncio.run(many()), [b"%d\n" % number for number in range(30)])

    def test_a_client_that_is_done_leaves_no_thread(self) -> None:
        before = {thread.name for thread in threading.enumerate()}
        with berth.Client.connect() as client:
            client.attach(self.session.id).run("cat", input=b"x")
        until("its threads to end", lambda: not [
            thread
            for thread in threading.enumerate()
            if thread.name.startswith("berth-") and thread.name not in before
        ])


if __name__ == "__main__":
    unittest.main()
