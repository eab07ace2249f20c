# Made by generate.py of aio_case.py: don't change it here.
"""What the tests against a cluster share: a client, a session, and what a refusal looks like. case.py is this without `await`."""

import concurrent.futures
import unittest

import berth
import berth


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.client = berth.Client.connect()
        self.session = self.client.create_session(ttl=600, labels={"made-by": "test"})

    def tearDown(self) -> None:
        self.session.delete()
        self.client.close()

    def refused(self, reason, call, *args, **options):
        """The error of a call that is refused for this reason."""
        with self.assertRaises(berth.BerthError) as caught:
            call(*args, **options)
        self.assertEqual(caught.exception.reason, reason, caught.exception)
        self.assertGreater(len(caught.exception.hint), 10)
        return caught.exception

    def beside(self, work, *args):
        """Something that blocks, in a thread of its own, while the client goes on."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            doing = pool.submit(work, *args)
            while not doing.done():
                self.session.info()
            return doing.result()
