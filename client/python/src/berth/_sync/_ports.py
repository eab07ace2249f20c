# Made by generate.py of aio/_ports.py: don't change it here.
"""Servers in a session: a connection to one, and a port here for one.

Each direction of a connection ends for itself. What is over without its end was broken, and never looks whole: neither to the
server inside, which is reset then, nor to whoever connected here.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from types import TracebackType
from typing import TYPE_CHECKING, Callable, List, Optional, Set, Tuple, Type

from .._proto import port_pb2
from ..errors import BerthError, Reason, broken, local_io, strange
from ._transport import Background, Duplex, Places, accept, listening, receive, send_all, sleep

if TYPE_CHECKING:
    from ._client import Client
    from ._session import Session

#: Bytes of a connection that go in one message.
CHUNK = 64 << 10
#: Connections that one session takes at a time.
CONNECTIONS = 64
#: Says of a socket that to close it is to reset it.
RESET = struct.pack("ii", 1, 0)


class PortStream:
    """A connection to a port of a session. One that is closed before both directions have ended is reset for the server, and what
    was written last may not reach it: read to the end first. Every method raises `berth.BerthError`.

    Reading and writing go on beside each other; two readers, or two writers, don't.
    """

    def __init__(self, address: str, stream: Duplex) -> None:
        """Use `Session.connect_port`."""
        self._address = address
        self._stream = stream
        self._read = b""
        #: The server sends nothing more; and we don't.
        self._ended = False
        self._finished = False
        self._closed = False

    @classmethod
    def _open(cls, client: Client, session_id: str, port: int) -> PortStream:
        header = port_pb2.DialHeader(session_id=session_id, port=checked_port(port))
        transport = client._transport
        stream = transport.duplex(transport.ports.Dial)
        try:
            stream.send(port_pb2.DialRequest(header=header))
            first: Optional[port_pb2.DialResponse] = stream.next()
            if first is None or not first.HasField("connected"):
                raise strange("a connection began with something else")
        except BaseException:
            stream.cancel()
            raise
        return cls(client.address, stream)

    def read(self, most: int = CHUNK) -> bytes:
        """What has come, at most so many bytes; waits for the first. Empty: the server sends nothing more."""
        if most < 1:
            raise BerthError("most is at least 1")
        while not self._read and not self._ended:
            message: Optional[port_pb2.DialResponse] = self._stream.next()
            if message is None:
                raise broken(self._address, "the connection to the port was reset")
            self._ended = message.HasField("end")
            self._read = message.data
        data, self._read = self._read[:most], self._read[most:]
        return data

    def write(self, data: bytes) -> None:
        """Sends all of it. Returns when it is on its way; a server that does not read makes this wait."""
        if self._finished:
            raise BerthError("this direction of the connection has ended", hint="write before end()")
        rest = memoryview(data)
        while rest:
            self._stream.send(port_pb2.DialRequest(data=bytes(rest[:CHUNK])))
            rest = rest[CHUNK:]

    def end(self) -> None:
        """Sends nothing more: the server reads an end of file. What it sends can be read on."""
        if self._finished:
            return
        self._finished = True
        self._stream.send(port_pb2.DialRequest(end=port_pb2.DialEnd()))
        self._stream.finish()

    def close(self) -> None:
        """Ends the connection. Where both directions have ended, it returns when the server has all that was written."""
        if self._closed:
            return
        self._closed = True
        try:
            while self._ended and self._finished and self._stream.next() is not None:
                pass
        finally:
            self._stream.cancel()

    def _reset(self) -> None:
        """Ends it at once, whatever has come of it."""
        self._closed = True
        self._stream.cancel()

    def __enter__(self) -> PortStream:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        # What went wrong inside says more than what comes of it here.
        if error is not None:
            self._reset()
        else:
            self.close()


class PortForward:
    """A port here for one in a session, until it is closed: see `Session.forward_port`."""

    port: int
    """The server's, in the session."""
    address: Tuple[str, int]
    """Where it listens here."""

    def __init__(
        self,
        session: Session,
        port: int,
        listener: socket.socket,
        on_error: Optional[Callable[[BerthError], None]],
    ) -> None:
        """Use `Session.forward_port`."""
        self.port = port
        self.address = listener.getsockname()[:2]
        self._session = session
        self._listener = listening(listener)
        self._on_error = on_error
        #: As many as the session takes; others wait in the kernel.
        self._places = Places(CONNECTIONS)
        self._open: Set[_Connection] = set()
        self._closed = False
        self._accepting = Background(self._accept)

    @classmethod
    def _listen(
        cls,
        session: Session,
        port: int,
        local_port: int,
        listen: str,
        expose: bool,
        on_error: Optional[Callable[[BerthError], None]],
    ) -> PortForward:
        checked_port(port)
        try:
            where = ipaddress.ip_address(listen)
        except ValueError:
            raise BerthError(f"{listen!r} is no IP address", hint="127.0.0.1, or ::1") from None
        if not where.is_loopback and not expose:
            hint = "whoever reaches it reaches the server in the session, without a token: expose=True if that is meant"
            raise BerthError(f"{listen} can be reached from other machines", hint=hint)
        if local_port != 0:
            checked_port(local_port)
        # Told now, and not with the first connection.
        if (session.info()).state in ("ending", "ended"):
            hint = "`berth ps` lists those that are not; create_session makes one"
            raise BerthError(f"session {session.id} is over", reason=Reason.SESSION_ENDED, hint=hint)
        family = socket.AF_INET6 if where.version == 6 else socket.AF_INET
        try:
            listener = socket.create_server((listen, local_port), family=family, backlog=CONNECTIONS)
        except OSError as error:
            hint = "leave local_port out for a free one, and look at listen"
            raise local_io(f"can't listen on {listen}:{local_port}", error, hint) from error
        return cls(session, port, listener, on_error)

    @property
    def local_port(self) -> int:
        """Where it listens here."""
        return self.address[1]

    def close(self) -> None:
        """Listens no more, and cuts what is open."""
        if self._closed:
            return
        self._closed = True
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            # Some systems have no such thing for a listener: it is looked at again in a moment.
            pass
        # Also those for whose place the next one waits.
        self._cut()
        self._accepting.stop()
        self._accepting.join()
        self._listener.close()
        for connection in self._cut():
            connection.ended()

    def _cut(self) -> List[_Connection]:
        connections = list(self._open)
        for connection in connections:
            connection.cut()
        return connections

    def __enter__(self) -> PortForward:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closed:
            self._places.acquire()
            local: Optional[socket.socket] = None
            try:
                local = accept(self._listener)
            except OSError:
                # Such as: too many files are open. The next one may be taken.
                sleep(0.1)
            if local is None:
                self._places.release()
                continue
            connection = _Connection(self, local)
            self._open.add(connection)
            connection.start()

    def _over(self, connection: _Connection, error: Optional[BerthError]) -> None:
        """One has come to its end, and why, if it broke inside."""
        self._open.discard(connection)
        self._places.release()
        if error is not None and self._on_error is not None and not self._closed:
            self._on_error(error)


class _Connection:
    """One that came in here, and its own to the server."""

    def __init__(self, forward: PortForward, local: socket.socket) -> None:
        self._forward = forward
        self._local = local
        self._remote: Optional[PortStream] = None
        #: Whoever connected here has gone away, or was cut off.
        self._gone = False
        self._down: Optional[Background] = None

    def start(self) -> None:
        self._down = Background(self._carry)

    def cut(self) -> None:
        """Ends it. Whoever connected here is sent no end, but the reset that comes of closing it."""
        self._gone = True
        if self._remote is not None:
            self._remote._reset()
        self._reset_local()

    def _is_gone(self) -> bool:
        return self._gone

    def ended(self) -> None:
        """Waits for the end of one that was cut."""
        if self._down is not None:
            self._down.stop()
            self._down.join()

    def _carry(self) -> None:
        """To its end, whatever that is."""
        failed: Optional[BerthError] = None
        whole = False
        try:
            # Small answers are not to wait for one another.
            self._local.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._remote = self._forward._session.connect_port(self._forward.port)
            if not self._gone:
                whole = self._both_ways(self._remote)
        except BerthError as error:
            failed = error
        except OSError:
            self._gone = True
        finally:
            if not whole:
                # What is not whole must not look so.
                if self._remote is not None:
                    self._remote._reset()
                self._reset_local()
            self._local.close()
            self._forward._over(self, None if self._gone else failed)

    def _both_ways(self, remote: PortStream) -> bool:
        """Whether each direction came to its end."""
        up = Background(self._send, remote)
        try:
            while True:
                data = remote.read()
                if not data:
                    break
                send_all(self._local, data, self._is_gone)
            self._local.shutdown(socket.SHUT_WR)
            up.join()
            if not self._gone:
                remote.close()
            return not self._gone
        finally:
            up.stop()

    def _send(self, remote: PortStream) -> None:
        """What comes here, to the server."""
        try:
            while True:
                data = receive(self._local, CHUNK, self._is_gone)
                if self._gone:
                    return
                if not data:
                    break
                remote.write(data)
            remote.end()
        except BerthError:
            # Reading says why.
            pass
        except OSError:
            self._gone = True
            remote._reset()

    def _reset_local(self) -> None:
        """Has closing it be a reset, and wakes who reads from it."""
        try:
            self._local.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._local.shutdown(socket.SHUT_RD)
        except OSError:
            pass


def checked_port(port: int) -> int:
    """Raises `BerthError` for what is none."""
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise BerthError(f"{port!r} is no port", hint="a port is a number from 1 to 65535")
    return port
