"""Over TLS: BERTH_ADDRESS is an https:// address, BERTH_TEST_CA its CA's certificate, BERTH_TEST_FOREIGN_CA another's."""

import asyncio
import os
import unittest

import berth
import berth.aio


@unittest.skipUnless("BERTH_TEST_CA" in os.environ, "needs a cluster with TLS")
class TlsTest(unittest.TestCase):
    def test_all_goes_over_it(self) -> None:
        with berth.Client.connect(ca=os.environ["BERTH_TEST_CA"]) as client, client.session(ttl=60) as session:
            self.assertEqual(session.run("cat", input="x" * 1_000_000).stdout, b"x" * 1_000_000)

        async def run() -> bytes:
            async with await berth.aio.Client.connect(ca=os.environ["BERTH_TEST_CA"]) as client:
                async with client.session(ttl=60) as session:
                    return (await session.run("echo safe")).stdout

        self.assertEqual(asyncio.run(run()), b"safe\n")

    def test_who_gets_it_wrong_is_told_what_to_do(self) -> None:
        address, ca = os.environ["BERTH_ADDRESS"], os.environ["BERTH_TEST_CA"]
        plain = address.replace("https://", "")
        for given, certificate, what, hint in (
            (plain, None, "this port has TLS", "https://"),
            (address, None, "no CA is known", "BERTH_TLS_CA"),
            (address, os.environ["BERTH_TEST_FOREIGN_CA"], "not one that this CA vouches for", "BERTH_TLS_CA"),
            (f"http://{plain}", ca, "says http://", "https://"),
            (address, "/nowhere", "can't read the CA's certificate", ""),
        ):
            with self.assertRaises(berth.BerthError, msg=given) as caught:
                berth.Client.connect(given, ca=certificate)
            self.assertIn(what, caught.exception.message)
            self.assertIn(hint, caught.exception.hint)
        berth.Client.connect(plain, ca=ca).close()


if __name__ == "__main__":
    unittest.main()
