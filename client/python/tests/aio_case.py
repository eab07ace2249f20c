"""What the tests against a cluster share: a client, a session, and what a refusal looks like. case.py is this without `await`."""

import concurrent.futures
import unittest

import berth
import berth.aio


class Case(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        self.client = await berth.aio.Client.connect()
        self.session = await self.client.create_session(ttl=600, labels={"made-by": "test"})

    async def asyncTearDown(self) -> None:
        await self.session.delete()
        await self.client.close()

    async def refused(self, reason, call, *args, **options):
        """The error of a call that is refused for this reason."""
        with self.assertRaises(berth.BerthError) as caught:
            await call(*args, **options)
        self.assertEqual(caught.exception.reason, reason, caught.exception)
        self.assertGreater(len(caught.exception.hint), 10)
        return caught.exception

    async def beside(self, work, *args):
        """Something that blocks, in a thread of its own, while the client goes on."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            doing = pool.submit(work, *args)
            while not doing.done():
                await self.session.info()
            return doing.result()
