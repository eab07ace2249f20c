"""Calls over grpc, and the few things of threads that the client needs. Its async twin is `berth/aio/_transport.py`."""

from __future__ import annotations

import collections
import socket
import threading
import time
import weakref
from typing import Any, Callable, Deque, Iterable, Iterator, List, Optional, Union

import grpc

from .. import _channel, errors
from .._local import Target
from .._policy import SILENCE
from .._proto import (
    artifact_pb2_grpc,
    audit_pb2_grpc,
    checkpoint_pb2_grpc,
    file_pb2_grpc,
    interpreter_pb2_grpc,
    port_pb2_grpc,
    secret_pb2_grpc,
    session_pb2_grpc,
    task_pb2_grpc,
)

Lock = threading.Lock
sleep = time.sleep
now = time.monotonic
#: What is written to a file.
Source = Union[bytes, str, Iterable[bytes]]


class Transport:
    """One connection, and the token."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._metadata = _channel.metadata(target)
        credentials = _channel.credentials(target)
        if credentials is None:
            self.channel = grpc.insecure_channel(target.host_port, options=_channel.OPTIONS)
        else:
            self.channel = grpc.secure_channel(target.host_port, credentials, options=_channel.OPTIONS)
        self._watchdog = _Watchdog()
        self._closed = False
        self.sessions: Any = session_pb2_grpc.SessionServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.tasks: Any = task_pb2_grpc.TaskServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.files: Any = file_pb2_grpc.FileServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.contexts: Any = interpreter_pb2_grpc.InterpreterServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.checkpoints: Any = checkpoint_pb2_grpc.CheckpointServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.ports: Any = port_pb2_grpc.PortServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.artifacts: Any = artifact_pb2_grpc.ArtifactServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.secrets: Any = secret_pb2_grpc.SecretServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.audit: Any = audit_pb2_grpc.AuditServiceStub(self.channel)  # type: ignore[no-untyped-call]

    def error(self, error: Any, waited: Optional[float] = None) -> errors.BerthError:
        """What an exception of gRPC's says."""
        address = self.target.address
        if isinstance(error, grpc.FutureCancelledError):
            return errors.broken(address, "the call was reset")
        code, said = error.code(), error.details() or ""
        return errors.from_status(code, said, error.trailing_metadata(), address, waited)

    def ready(self) -> None:
        """Raises `BerthError` if nothing answers."""
        ask: Any = self.channel.unary_unary(_channel.HEALTH)
        try:
            self.unary(ask, b"", _channel.CONNECT_TIMEOUT)
        except errors.BerthError as error:
            if error.origin is not errors.Origin.ANSWERED:
                raise

    def unary(self, method: Callable[..., Any], message: Any, deadline: Optional[float]) -> Any:
        """Makes a unary call, once."""
        try:
            return method(message, timeout=deadline, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self.error(error, deadline) from error
        except ValueError as error:
            raise self._refused(error) from error

    def _refused(self, error: ValueError) -> Exception:
        """Of gRPC's own: it makes no calls on a channel that was closed, and says so with a ValueError."""
        return errors.closed() if self._closed else error

    def stream(self, method: Callable[..., Any], message: Any) -> Incoming:
        """Opens a stream from the server. What it fails with is told by its first `next`."""
        try:
            incoming = Incoming(self, method(message, metadata=self._metadata))
        except ValueError as error:
            raise self._refused(error) from error
        self._watchdog.watch(incoming)
        return incoming

    def upload(self, method: Any, messages: Iterator[Any]) -> Any:
        """Sends a stream, and returns its answer. Raises what the source raises; the upload then has no end."""
        failed: List[BaseException] = []
        # When the server last took something. None: it waits for the source, whose slowness is the caller's own affair.
        taken: List[Optional[float]] = [None]

        def sent() -> Iterator[Any]:
            try:
                for message in messages:
                    taken[0] = now()
                    yield message
                    taken[0] = None
            except GeneratorExit:
                # gRPC takes no more: the call is over.
                raise
            except BaseException as error:
                failed.append(error)
            taken[0] = now()

        try:
            call = method.future(sent(), metadata=self._metadata)
        except ValueError as error:
            raise self._refused(error) from error
        try:
            while True:
                try:
                    answer = call.result(timeout=1.0)
                    break
                except grpc.FutureTimeoutError:
                    if taken[0] is not None and now() - taken[0] > SILENCE:
                        raise errors.deadline(self.target.address, SILENCE) from None
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            if failed:
                raise failed[0] from None
            raise self.error(error) from error
        finally:
            call.cancel()
        if failed:
            raise failed[0]
        return answer

    def duplex(self, method: Callable[..., Any]) -> Duplex:
        """Opens a stream in both directions. What it fails with is told by its first `next`."""
        try:
            return Duplex(self, method, self._metadata)
        except ValueError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Ends the connection and what is under way on it."""
        self._closed = True
        self._watchdog.close()
        self.channel.close()


class Incoming:
    """Messages from the server."""

    def __init__(self, transport: Transport, call: Any) -> None:
        self._transport = transport
        self._call = call
        #: Since when a message is waited for.
        self.waits_since: Optional[float] = None
        self.silent = False

    def next(self) -> Optional[Any]:
        """The next message. None: the stream has ended well."""
        self.waits_since = now()
        try:
            return next(self._call)
        except StopIteration:
            return None
        except grpc.RpcError as error:
            if self.silent:
                why = f"nothing came for {SILENCE:.0f} s"
                raise errors.broken(self._transport.target.address, why) from None
            raise self._transport.error(error) from error
        finally:
            self.waits_since = None

    def cancel(self) -> None:
        """Ends it."""
        self._call.cancel()


class Duplex(Incoming):
    """Messages both ways, of a stream that may be quiet: that its connection is gone, gRPC's own probes tell."""

    #: Messages that wait for the connection.
    QUEUE = 2

    def __init__(self, transport: Transport, method: Callable[..., Any], metadata: Any) -> None:
        self._changed = threading.Condition()
        self._waiting: Deque[Any] = collections.deque()
        self._last = False
        self._over = False
        super().__init__(transport, method(self._sent(), metadata=metadata))
        if not self._call.add_callback(self._ended):
            self._ended()

    def _sent(self) -> Iterator[Any]:
        """What gRPC takes, in a thread of its own."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._last or self._over)
                if self._over or not self._waiting:
                    return
                message = self._waiting.popleft()
                self._changed.notify_all()
            yield message

    def _ended(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def send(self, message: Any) -> None:
        """Sends a message, when there is room for it on the way."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or len(self._waiting) < self.QUEUE)
            if not self._over:
                self._waiting.append(message)
                self._changed.notify_all()
                return
        if self._call.code() is grpc.StatusCode.OK:
            raise errors.broken(self._transport.target.address, "the other side has ended the stream")
        raise self._transport.error(self._call)

    def finish(self) -> None:
        """Sends nothing more. If it is over, `next` says why."""
        with self._changed:
            self._last = True
            self._changed.notify_all()


class _Watchdog:
    """Cancels streams in which nothing came for too long: one thread for all streams of a client, while there are some."""

    def __init__(self) -> None:
        self._streams: weakref.WeakSet[Incoming] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._running = False
        self._closed = threading.Event()

    def watch(self, stream: Incoming) -> None:
        with self._lock:
            self._streams.add(stream)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="berth-watchdog", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(1.0) and self._look():
            pass

    def _look(self) -> bool:
        """Whether there is anything left to watch."""
        with self._lock:
            streams = list(self._streams)
            self._running = bool(streams)
        for stream in streams:
            since = stream.waits_since
            if since is not None and now() - since > SILENCE:
                stream.silent = True
                stream.cancel()
        return bool(streams)


def pieces(source: Source) -> Iterator[bytes]:
    """A source as bytes, one piece after the other."""
    if isinstance(source, str):
        yield source.encode()
    elif isinstance(source, (bytes, bytearray, memoryview)):
        yield bytes(source)
    else:
        yield from source


class Background:
    """Something that goes on meanwhile."""

    def __init__(self, work: Callable[..., Any], *args: Any) -> None:
        self._thread = threading.Thread(target=work, args=args, name="berth-background", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Nothing to do: it ends with the task that it works for."""

    def join(self) -> None:
        """Waits for its end."""
        self._thread.join()


Places = threading.Semaphore


#: How often who waits for a socket looks whether it is still to, in seconds.
LOOK_EVERY = 1.0


def listening(opened: socket.socket) -> socket.socket:
    """As `accept` needs it."""
    opened.settimeout(LOOK_EVERY)
    return opened


def accept(listener: socket.socket) -> Optional[socket.socket]:
    """The next connection. None: nobody came yet. Raises `OSError`, also when the listener was shut down."""
    try:
        local = listener.accept()[0]
    except socket.timeout:
        return None
    local.settimeout(LOOK_EVERY)
    return local


def receive(local: socket.socket, most: int, over: Callable[[], bool]) -> bytes:
    """What has come. Empty: the other side sends nothing more, or it is `over`."""
    while not over():
        try:
            return local.recv(most)
        except socket.timeout:
            pass
    return b""


def send_all(local: socket.socket, data: bytes, over: Callable[[], bool]) -> None:
    """Sends all of it, unless it is `over`. Raises `OSError`."""
    rest = memoryview(data)
    while rest and not over():
        try:
            rest = rest[local.send(rest) :]
        except socket.timeout:
            pass
