# Made by generate.py of test_aio_services.py: don't change it here.
"""Ports, usage, artifacts, secrets and the audit record, against a real cluster. test_services.py is this without `await`."""

import datetime
import hashlib
import os
import socket
import unittest
import uuid

import berth
import berth

from .case import Case

#: In a session: reads a connection to its end, and sends it back in upper case; `break` breaks it. It says when it is broken off.
SERVER = """
import socket, struct
listener = socket.create_server(("127.0.0.1", 8123))
print("ready", flush=True)
while True:
    connection = listener.accept()[0]
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
            if data == b"break":
                connection.sendall(b"BRE")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                break
        else:
            connection.sendall(data.upper())
    except ConnectionResetError:
        print("broken", flush=True)
    connection.close()
"""
PORT = 8123


def exchange(address, data):
    """What a program here gets from a port here."""
    with socket.create_connection(address, timeout=60) as local:
        local.sendall(data)
        if data != b"break":
            local.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := local.recv(65536):
            answer += piece
        return answer


class PortTest(Case):
    def setUp(self) -> None:
        super().setUp()
        self.server = self.session.stream(["python3", "-c", SERVER])
        self.assertEqual((self.server.next()).data, b"ready\n")

    def tearDown(self) -> None:
        self.server.close()
        super().tearDown()

    def test_a_connection_ends_each_way_for_itself(self) -> None:
        data = os.urandom(1 << 20).hex().encode()
        with self.session.connect_port(PORT) as stream:
            # Taken before the server sends anything, so more than all buffers on the way hold.
            stream.write(data[:5])
            stream.write(data[5:])
            stream.end()
            answer = b""
            while piece := stream.read():
                answer += piece
            self.assertTrue(answer == data.upper(), len(answer))
            self.assertEqual(stream.read(), b"")
            with self.assertRaisesRegex(berth.BerthError, "has ended"):
                stream.write(b"more")
        with self.session.connect_port(PORT) as stream:
            stream.write(b"abc")
            stream.end()
            self.assertEqual([stream.read(2), stream.read(2), stream.read(2)], [b"AB", b"C", b""])

    def test_what_breaks_never_looks_whole(self) -> None:
        with self.session.connect_port(PORT) as stream:
            stream.write(b"break")
            got = b""
            with self.assertRaises(berth.BerthError):
                while True:
                    piece = stream.read()
                    self.assertNotEqual(piece, b"", "an end in order")
                    got += piece
            self.assertIn(got, (b"", b"BRE"))
        # One that is closed before its end is broken for the server, and not half of it all of it.
        stream = self.session.connect_port(PORT)
        stream.write(b"half")
        stream.close()
        self.assertEqual((self.server.next()).data, b"broken\n")

    def test_what_is_no_port_is_told(self) -> None:
        self.refused(berth.Reason.PORT_CLOSED, self.session.connect_port, 1)
        for wrong in (0, -1, 65536, "80", None, True):
            error = self.refused(None, self.session.connect_port, wrong)
            self.assertIn("1 to 65535", error.hint)
            self.refused(None, self.session.forward_port, wrong)
        self.refused(None, self.session.forward_port, PORT, listen="localhost")
        error = self.refused(None, self.session.forward_port, PORT, listen="0.0.0.0")
        self.assertIn("expose", error.hint)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            call, port = self.session.forward_port, taken.getsockname()[1]
            error = self.refused(None, call, PORT, local_port=port)
            self.assertIn("can't listen on", error.message)
        other = self.client.create_session(ttl=60)
        other.delete()
        self.refused(berth.Reason.SESSION_ENDED, other.connect_port, PORT)
        self.refused(berth.Reason.SESSION_ENDED, other.forward_port, PORT)

    def test_a_port_here_is_the_one_there(self) -> None:
        told = []
        data = os.urandom(1 << 20).hex().encode()
        with self.session.forward_port(PORT, on_error=told.append) as forward:
            self.assertEqual(forward.address, ("127.0.0.1", forward.local_port))
            for sent in (b"one", b"", data):
                self.assertTrue(self.beside(exchange, forward.address, sent) == sent.upper())
            self.assertEqual(told, [])
            with self.assertRaises(ConnectionResetError):
                self.beside(exchange, forward.address, b"break")
            # More than a session takes at a time, one after the other: each gives its place back.
            for _ in range(70):
                self.assertEqual(self.beside(exchange, forward.address, b"x"), b"X")
            self.assertEqual(len(told), 1)
            # Open, and quiet, when it is closed.
            local = socket.create_connection(forward.address, timeout=60)
            local.sendall(b"half")
        with local, self.assertRaises(ConnectionResetError):
            local.recv(1)
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(forward.address)
        forward.close()
        with self.session.forward_port(1, on_error=told.append) as forward:
            with self.assertRaises(ConnectionResetError):
                self.beside(exchange, forward.address, b"x")
        self.assertEqual([error.reason for error in told[1:]], [berth.Reason.PORT_CLOSED])


class ServicesTest(Case):
    def test_what_a_session_takes(self) -> None:
        with self.session.stream("echo; read x", stdin=True) as stream:
            stream.next()
            usage = self.session.usage()
            self.assertEqual(usage.tasks, 1)
            stream.task.close_stdin()
        self.assertGreater(usage.tasks_limit, 1)
        self.assertGreater(usage.pids, 0)
        self.assertGreater(usage.cpu_seconds, 0)
        self.assertLess(usage.memory_bytes, usage.memory_limit_bytes)
        self.assertEqual(usage.read_at.tzinfo, datetime.timezone.utc)
        info = self.session.info()
        self.assertEqual(usage.cpu_limit_millis, info.limits.cpu_millis)
        self.refused(berth.Reason.SESSION_NOT_FOUND, self.client.attach("0" * 32).usage)

    def kept(self):
        """The session's artifacts, once nothing more is to come."""
        while True:
            found = self.session.artifacts()
            if not found.pending:
                return found

    def test_what_tasks_leave_is_kept_and_read(self) -> None:
        self.assertEqual((self.kept()).artifacts, [])
        self.session.run("mkdir -p artifacts/d; seq 300000 > artifacts/d/n.csv; ln -s d artifacts/link")
        found = self.kept()
        [artifact] = found.artifacts
        self.assertEqual((artifact.name, artifact.size, artifact.media_type), ("d/n.csv", 1_988_895, "text/csv"))
        self.assertEqual(artifact.session, self.session.id)
        self.assertEqual([file.name for file in found.not_kept], ["link"])
        self.session.delete()
        data = self.client.read_artifact(artifact.id)
        self.assertEqual(hashlib.sha256(data).hexdigest(), artifact.sha256)
        self.assertEqual(self.client.read_artifact(artifact.id, offset=2, length=4), b"2\n3\n")
        self.assertEqual(self.client.read_artifact(artifact.id, offset=artifact.size - 3), b"00\n")
        self.assertEqual(self.client.get_artifact(artifact.id), artifact)
        self.assertIn(artifact, (self.client.list_artifacts()).artifacts)
        self.assertEqual((self.session.artifacts()).artifacts, [artifact])
        self.client.delete_artifact(artifact.id)
        self.client.delete_artifact(artifact.id)
        for call in (self.client.get_artifact, self.client.read_artifact):
            self.refused(berth.Reason.ARTIFACT_NOT_FOUND, call, artifact.id)
        self.refused("INVALID_FIELD", self.client.get_artifact, "x")
        self.refused(None, self.client.read_artifact, artifact.id, offset=-1)

    def test_secrets_are_set_and_never_told(self) -> None:
        name = "s" + uuid.uuid4().hex[:8]
        made = self.client.set_secret(name, "grüße", ttl=3600)
        self.assertEqual((made.name, made.tenant, made.bytes, made.unusable), (name, "default", 7, None))
        self.assertGreater(made.expires_at, made.updated_at)
        self.assertEqual((self.session.run("echo $A", secrets={"A": name})).stdout_text, "grüße\n")
        again = self.client.set_secret(name, b"other")
        self.assertEqual((again.bytes, again.expires_at), (5, None))
        self.assertEqual((self.session.run("echo $A", secrets={"A": name})).stdout, b"other\n")
        for listed in (self.client.list_secrets(), self.client.list_secrets("default")):
            self.assertEqual([secret for secret in listed if secret.name == name], [again])
        self.assertEqual(self.client.list_secrets("nobody"), [])
        self.client.delete_secret(name)
        self.refused(berth.Reason.SECRET_NOT_FOUND, self.client.delete_secret, name)
        self.refused("INVALID_FIELD", self.client.set_secret, "no name", "x")
        self.refused("INVALID_FIELD", self.client.set_secret, name, "")
        for wrong in ({"value": 7}, {"value": "x", "ttl": -1}):
            self.refused(None, self.client.set_secret, name, **wrong)

    def test_the_audit_record_is_read(self) -> None:
        begun = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=1)
        self.session.run("true")
        self.refused("CWD_NOT_FOUND", self.session.run, "true", cwd="nowhere")
        self.session.pause()
        self.session.resume()

        def told(**options):
            found = self.client.list_audit(session_id=self.session.id, since=begun, **options)
            self.assertEqual({record.session for record in found}, {self.session.id})
            self.assertEqual(sorted((record.sequence for record in found), reverse=True), [r.sequence for r in found])
            return found

        records = told()
        what = [record.what for record in records]
        self.assertEqual(what[:2], ["SessionService/ResumeSession", "SessionService/PauseSession"])
        self.assertEqual((records[0].outcome, records[0].who), ("OK", "admin.token"))
        self.assertIn("argv", next(r for r in records if r.what == "TaskService/Run").details)
        [refused] = told(refused=True)
        self.assertTrue(refused.outcome.endswith("CWD_NOT_FOUND"), refused)
        self.assertEqual(told(most=2), records[:2])
        self.assertEqual(told(what="SessionService/Pause"), records[1:2])
        self.assertEqual(self.client.list_audit(until=begun, session_id=self.session.id), [])
        checked = self.client.verify_audit()
        self.assertIsNone(checked.broken_at)
        self.assertGreaterEqual(checked.last, records[0].sequence)
        with self.assertRaisesRegex(berth.BerthError, "zone"):
            self.client.list_audit(since=datetime.datetime.now())
        self.refused(None, self.client.list_audit, most=0)

    def test_what_is_for_operators_is_refused_to_others(self) -> None:
        token = os.environ["BERTH_TEST_CLIENT_TOKEN"]
        with berth.Client.connect(token=token) as client:
            calls = (client.list_secrets, client.list_audit, client.verify_audit)
            for call in calls:
                error = self.refused("TOKEN_SCOPE", call)
                self.assertEqual(error.code.name, "PERMISSION_DENIED")
            self.assertEqual((client.list_artifacts()).artifacts, [])


if __name__ == "__main__":
    unittest.main()
