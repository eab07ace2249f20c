"""What needs no cluster: where a coordinator is found, how errors are read, how starts are made again; and that what is
generated is what the sources say."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import grpc

import berth
from berth import _local, _policy, errors
from berth._proto import status_pb2

SOURCES = pathlib.Path(__file__).resolve().parent.parent
REPOSITORY = SOURCES.parent.parent


class FindTest(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.state = pathlib.Path(scratch.name)
        (self.state / "credentials").mkdir()
        (self.state / "credentials" / "admin.token").write_text("secret\n")
        environment = {"BERTH_STATE_DIR": str(self.state), "HOME": str(self.state)}
        patch = mock.patch.dict(os.environ, environment, clear=True)
        patch.start()
        self.addCleanup(patch.stop)

    def find(self, address=None, token=None, ca=None):
        return _local.find(address, token, ca)

    def test_the_address_is_given_or_found(self) -> None:
        self.assertEqual(self.find().address, "127.0.0.1:50051")
        (self.state / "up.json").write_text('{"address": "127.0.0.1:7"}')
        self.assertEqual(self.find().address, "127.0.0.1:7")
        os.environ["COORDINATOR_ADDR"] = "localhost:8"
        self.assertEqual(self.find().address, "localhost:8")
        os.environ["BERTH_ADDRESS"] = "localhost:9"
        self.assertEqual(self.find().address, "localhost:9")
        self.assertEqual(self.find("localhost:10").address, "localhost:10")
        self.assertEqual(self.find("http://localhost:10/").host_port, "localhost:10")
        (self.state / "up.json").write_text("{")
        self.assertEqual(self.find().address, "localhost:9")
        os.environ.clear()
        os.environ["BERTH_STATE_DIR"] = str(self.state)
        with self.assertRaisesRegex(berth.BerthError, "damaged"):
            self.find()

    def test_the_local_token_stays_on_this_machine(self) -> None:
        for here in ("localhost:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:5", "http://localhost:5/"):
            self.assertEqual(self.find(here).token, "secret", here)
        for away in ("example.org:1", "10.0.0.1:1", "localhost.example.org:1", "[fe80::1]:1"):
            self.assertIsNone(self.find(away).token, away)
        self.assertFalse(_local.is_loopback("http://127.0.0.1@evil:1"))
        os.environ["BERTH_TOKEN"] = "given"
        self.assertEqual(self.find("example.org:1").token, "given")
        self.assertEqual(self.find("example.org:1", "own").token, "own")
        self.assertNotIn("own", repr(self.find("example.org:1", "own")))
        for wrong in ("a\nb", "grüße"):
            with self.assertRaises(berth.BerthError):
                self.find("localhost:1", wrong)

    def test_the_scheme_and_the_certificates_must_agree(self) -> None:
        ca = self.state / "ca.pem"
        ca.write_text("a certificate")
        self.assertEqual(self.find("a:1", ca=ca).ca, b"a certificate")
        self.assertIsNone(self.find("a:1").ca)
        (self.state / "tls").mkdir()
        (self.state / "tls" / "ca.pem").write_text("of the state")
        self.assertEqual(self.find("https://a:1").ca, b"of the state")
        self.assertIsNone(self.find("a:1").ca)
        os.environ["BERTH_TLS_DIR"] = str(self.state)
        self.assertEqual(self.find("a:1").ca, b"a certificate")
        for wrong in ("ftp://a:1", "a", "a:b", "a b:1", "a:99999", "http://a:1"):
            with self.assertRaises(berth.BerthError, msg=wrong):
                self.find(wrong, ca=ca)

    def test_an_empty_token_file_is_told(self) -> None:
        (self.state / "credentials" / "admin.token").write_text("\n")
        with self.assertRaisesRegex(berth.BerthError, "is empty"):
            self.find()


class ErrorTest(unittest.TestCase):
    def status(self, reason="NO_PLACE", domain="berth", **metadata):
        info = status_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)
        wire = status_pb2.Status(code=8, message="full")
        wire.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=info.SerializeToString())
        trailing = [("berth-request-id", "4bf9"), ("grpc-status-details-bin", wire.SerializeToString())]
        return errors.from_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", trailing, "a:1")

    def test_what_a_server_said_is_kept(self) -> None:
        error = self.status(hint="add a worker", missing="memory")
        self.assertEqual((error.reason, error.hint), (berth.Reason.NO_PLACE, "add a worker"))
        self.assertEqual((error.reason, error.details), ("NO_PLACE", {"missing": "memory"}))
        self.assertEqual(str(error), "full [NO_PLACE]\nhint: add a worker\nrequest: 4bf9")
        self.assertEqual(error.request_id, "4bf9")
        self.assertFalse(error.in_doubt or error.was_lost)
        # A reason of a later version is still told.
        self.assertEqual(self.status("BRAND_NEW", hint="x").reason, "BRAND_NEW")
        self.assertIsNone(self.status(domain="another").reason)
        garbage = [("grpc-status-details-bin", b"\xff\xff\xff")]
        code = grpc.StatusCode.NOT_FOUND
        self.assertIsNone(errors.from_status(code, "x", garbage, "a:1").reason)

    def test_what_the_transport_says_is_put_into_words(self) -> None:
        def said(code, text, waited=None):
            return errors.from_status(grpc.StatusCode[code], text, None, "a:1", waited)

        refused = said("UNAVAILABLE", "failed to connect to all addresses; last error: refused")
        self.assertTrue(refused.is_not_connected and not refused.in_doubt)
        broke = said("UNAVAILABLE", "Socket closed")
        self.assertTrue(broke.is_temporary and broke.in_doubt and broke.was_lost)
        self.assertTrue(said("INTERNAL", "Received RST_STREAM with error code 2").is_temporary)
        self.assertFalse(said("INTERNAL", "a bug").is_temporary)
        self.assertIn("did not answer within 3 s", said("DEADLINE_EXCEEDED", "Deadline Exceeded", 3.0).message)
        for code in grpc.StatusCode:
            self.assertGreater(len(errors.from_status(code, "", None, "a:1").hint), 10, code)

    def test_every_reason_of_the_server_is_known(self) -> None:
        text = (REPOSITORY / "proto" / "src" / "error.rs").read_text()
        theirs = re.findall(r'^    \w+ = "([A-Z_]+)":', text, re.M)
        self.assertGreater(len(theirs), 50)
        self.assertEqual([reason.value for reason in berth.Reason], theirs)


class AttemptTest(unittest.TestCase):
    def lost(self):
        return errors.broken("a:1", "Socket closed")

    def recovered(self, epoch):
        return berth.BerthError(
            "x", code=grpc.StatusCode.FAILED_PRECONDITION, reason="SESSION_RECOVERED", details={"epoch": str(epoch)}
        )

    def test_a_start_that_was_refused_at_first_is_made_again_at_the_new_place(self) -> None:
        attempt = _policy.Attempt(1, again=False)
        self.assertIsNone(attempt.failed(self.recovered(3)))
        self.assertEqual(attempt.epoch, 3)
        with self.assertRaises(berth.BerthError):
            attempt.failed(self.recovered(3))

    def test_a_start_in_doubt_is_not_made_again_unless_the_caller_says_so(self) -> None:
        attempt = _policy.Attempt(1, again=False)
        self.assertIsNotNone(attempt.failed(self.lost()))
        with self.assertRaises(berth.BerthError) as caught:
            attempt.failed(self.recovered(2))
        self.assertTrue(caught.exception.in_doubt)
        attempt = _policy.Attempt(1, again=True)
        attempt.failed(self.lost())
        self.assertIsNone(attempt.failed(self.recovered(2)))
        self.assertEqual(attempt.epoch, 2)

    def test_waits_grow_and_are_bounded(self) -> None:
        backoff = _policy.Backoff()
        waits = [backoff.next() for _ in range(12)]
        self.assertTrue(0.025 <= waits[0] <= 0.05 and 1 <= waits[11] <= 2, waits)


class SourcesTest(unittest.TestCase):
    @unittest.skipUnless(importlib.util.find_spec("grpc_tools"), "needs grpcio-tools")
    def test_what_is_generated_is_what_the_sources_say(self) -> None:
        made = subprocess.run([sys.executable, str(SOURCES / "generate.py"), "--check"], capture_output=True, text=True)
        self.assertEqual((made.returncode, made.stderr), (0, ""))

    @unittest.skipUnless(importlib.util.find_spec("mypy"), "needs mypy")
    def test_types_are_whole(self) -> None:
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, "-m", "mypy", "--cache-dir", cache]
            checked = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True)
        self.assertEqual(checked.returncode, 0, checked.stdout)

    def test_both_clients_have_the_same_names(self) -> None:
        import berth.aio

        for name in berth.aio.__all__:
            one, other = getattr(berth, name), getattr(berth.aio, name)
            self.assertEqual({n for n in vars(one) if n[0] != "_"}, {n for n in vars(other) if n[0] != "_"}, name)


if __name__ == "__main__":
    unittest.main()
