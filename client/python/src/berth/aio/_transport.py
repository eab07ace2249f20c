"""Calls over grpc.aio, and the few things of asyncio that the client needs. Its sync twin is `berth/_sync/_transport.py`."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Optional, Union

import grpc
import grpc.aio

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

Lock = asyncio.Lock
sleep = asyncio.sleep
now = time.monotonic
#: What is written to a file.
Source = Union[bytes, str, Iterable[bytes], AsyncIterable[bytes]]


class _TimedOut(Exception):
    """Nothing came in time."""


async def _settled(waited_for: Awaitable[Any], timeout: Optional[float]) -> Any:
    """Waits in a task of its own: a call that the other side cancels must not look like a cancellation of the caller."""
    task = asyncio.ensure_future(waited_for)
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout)
    except BaseException:
        task.cancel()
        raise
    if not done:
        task.cancel()
        raise _TimedOut
    return task.result()


#: What grpc.aio says when a write failed.
UNTOLD = "Internal error from Core"
#: The answer is there already then, or the end of the connection: this is for a machine that stands still.
TOLD_WITHIN = 5.0


class _Told:
    """What the server says to a call that writes. When a write fails since the call is over, grpc.aio sets a status of its own,
    in which it stands only that it did, maybe over the server's. So that one is kept when it comes."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.error: Optional[grpc.aio.AioRpcError] = None
        call.add_done_callback(self._ended)

    def _ended(self, call: Any) -> None:
        code, details = _at_once(call.code()), _at_once(call.details())
        if code is not grpc.StatusCode.OK and details != UNTOLD:
            metadata = grpc.aio.Metadata(), _at_once(call.trailing_metadata())
            self.error = grpc.aio.AioRpcError(code, *metadata, details=details)

    async def answer(self) -> Any:
        """The answer, or the error that it is."""
        try:
            return await _settled(self._call, SILENCE)
        except grpc.aio.AioRpcError as error:
            raise await self.instead(error) from None

    async def instead(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """What the server said, where this is what grpc.aio says."""
        until = now() + TOLD_WITHIN
        while error.details() == UNTOLD and self.error is None and now() < until:
            await sleep(0.01)
        return self.error or error


def _at_once(known: Any) -> Any:
    """What a coroutine returns that has nothing to wait for."""
    try:
        known.send(None)
    except StopIteration as returned:
        return returned.value
    known.close()
    return None


class Transport:
    """One connection, and the token."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._metadata = _channel.metadata(target)
        self._closed = False
        credentials = _channel.credentials(target)
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(target.host_port, options=_channel.OPTIONS)
        else:
            self.channel = grpc.aio.secure_channel(target.host_port, credentials, options=_channel.OPTIONS)
        self.sessions: Any = session_pb2_grpc.SessionServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.tasks: Any = task_pb2_grpc.TaskServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.files: Any = file_pb2_grpc.FileServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.contexts: Any = interpreter_pb2_grpc.InterpreterServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.checkpoints: Any = checkpoint_pb2_grpc.CheckpointServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.ports: Any = port_pb2_grpc.PortServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.artifacts: Any = artifact_pb2_grpc.ArtifactServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.secrets: Any = secret_pb2_grpc.SecretServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.audit: Any = audit_pb2_grpc.AuditServiceStub(self.channel)  # type: ignore[no-untyped-call]

    def error(self, error: BaseException, waited: Optional[float] = None) -> errors.BerthError:
        """What an exception of gRPC's says."""
        address = self.target.address
        if isinstance(error, grpc.aio.AioRpcError):
            trailing: Any = error.trailing_metadata()
            return errors.from_status(error.code(), error.details() or "", trailing, address, waited)
        if isinstance(error, _TimedOut):
            return errors.deadline(address, waited or 0)
        if isinstance(error, (asyncio.CancelledError, asyncio.InvalidStateError)):
            return errors.broken(address, "the call was reset")
        return errors.broken(address, str(error))

    async def ready(self) -> None:
        """Raises `BerthError` if nothing answers."""
        ask: Any = self.channel.unary_unary(_channel.HEALTH)
        try:
            await self.unary(ask, b"", _channel.CONNECT_TIMEOUT)
        except errors.BerthError as error:
            if error.origin is not errors.Origin.ANSWERED:
                raise

    async def unary(self, method: Callable[..., Any], message: Any, deadline: Optional[float]) -> Any:
        """Makes a unary call, once."""
        self._open()
        call = method(message, timeout=deadline, metadata=self._metadata)
        task = asyncio.ensure_future(call)
        try:
            await asyncio.wait({task})
        except BaseException:
            call.cancel()
            raise
        try:
            return task.result()
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            raise self.error(error, deadline) from error

    def stream(self, method: Callable[..., Any], message: Any) -> Incoming:
        """Opens a stream from the server. What it fails with is told by its first `next`."""
        self._open()
        return Incoming(self, method(message, metadata=self._metadata))

    async def upload(self, method: Callable[..., Any], messages: AsyncIterator[Any]) -> Any:
        """Sends a stream, and returns its answer. Raises what the source raises; the call is then reset."""
        self._open()
        call = method(metadata=self._metadata)
        told = _Told(call)
        try:
            async for message in messages:
                try:
                    await _settled(call.write(message), SILENCE)
                # The server has answered already: its answer says why.
                except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
                    break
            else:
                await call.done_writing()
            return await told.answer()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, _TimedOut) as error:
            raise self.error(error, SILENCE) from error
        finally:
            call.cancel()

    def duplex(self, method: Callable[..., Any]) -> Duplex:
        """Opens a stream in both directions. What it fails with is told by its first `next`."""
        self._open()
        return Duplex(self, method(metadata=self._metadata))

    async def close(self) -> None:
        """Ends the connection and what is under way on it."""
        self._closed = True
        await self.channel.close()

    def _open(self) -> None:
        if self._closed:
            raise errors.closed()


class Incoming:
    """Messages from the server."""

    #: Nothing for a while is no sign that it is broken.
    may_be_quiet = False

    def __init__(self, transport: Transport, call: Any) -> None:
        self._transport = transport
        self._call = call
        self._reading: Optional[asyncio.Future[Any]] = None

    async def next(self) -> Optional[Any]:
        """The next message. None: the stream has ended well. Being cancelled loses no message."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._call.read())
        done, _ = await asyncio.wait({self._reading}, timeout=None if self.may_be_quiet else SILENCE)
        reading, self._reading = self._reading, None
        if not done:
            reading.cancel()
            self._call.cancel()
            raise errors.broken(self._transport.target.address, f"nothing came for {SILENCE:.0f} s")
        try:
            message = reading.result()
        except (grpc.aio.AioRpcError, asyncio.CancelledError, asyncio.InvalidStateError) as error:
            raise await self._why(error) from error
        return None if message is grpc.aio.EOF else message

    async def _why(self, error: BaseException) -> errors.BerthError:
        return self._transport.error(error)

    def cancel(self) -> None:
        """Ends it."""
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        self._call.cancel()


class Duplex(Incoming):
    """Messages both ways, of a stream that may be quiet: that its connection is gone, gRPC's own probes tell."""

    may_be_quiet = True

    def __init__(self, transport: Transport, call: Any) -> None:
        super().__init__(transport, call)
        self._told = _Told(call)

    async def send(self, message: Any) -> None:
        """Sends a message, when there is room for it on the way."""
        try:
            await _settled(self._call.write(message), None)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError) as error:
            # The caller's own cancellation is not an answer.
            if isinstance(error, asyncio.CancelledError) and not self._call.done():
                raise
            raise await self._why(error) from error

    async def finish(self) -> None:
        """Sends nothing more. If it is over, `next` says why."""
        try:
            await self._call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass

    async def _why(self, error: BaseException) -> errors.BerthError:
        if isinstance(error, asyncio.InvalidStateError) and self._told.error is not None:
            error = self._told.error
        if isinstance(error, grpc.aio.AioRpcError):
            error = await self._told.instead(error)
        return self._transport.error(error)


async def pieces(source: Source) -> AsyncIterator[bytes]:
    """A source as bytes, one piece after the other."""
    if isinstance(source, str):
        yield source.encode()
    elif isinstance(source, (bytes, bytearray, memoryview)):
        yield bytes(source)
    elif isinstance(source, AsyncIterable):
        async for piece in source:
            yield piece
    else:
        for piece in source:
            yield piece


class Background:
    """Something that goes on meanwhile."""

    def __init__(self, work: Callable[..., Any], *args: Any) -> None:
        self._task = asyncio.ensure_future(work(*args))

    async def stop(self) -> None:
        """Ends it."""
        self._task.cancel()
        await asyncio.wait({self._task})

    async def join(self) -> None:
        """Waits for its end."""
        await asyncio.wait({self._task})


Places = asyncio.Semaphore


def listening(opened: socket.socket) -> socket.socket:
    """As `accept` needs it."""
    opened.setblocking(False)
    return opened


async def accept(listener: socket.socket) -> Optional[socket.socket]:
    """The next connection. (Its twin may say None: nobody came yet.) Raises `OSError`, also when the listener was shut down."""
    local = (await asyncio.get_running_loop().sock_accept(listener))[0]
    local.setblocking(False)
    return local


async def receive(local: socket.socket, most: int, over: Callable[[], bool]) -> bytes:
    """What has come. Empty: the other side sends nothing more. (Its twin, which nobody can cancel, looks whether it is `over`.)"""
    return await asyncio.get_running_loop().sock_recv(local, most)


async def send_all(local: socket.socket, data: bytes, over: Callable[[], bool]) -> None:
    """Sends all of it. Raises `OSError`. (`over`: as in `receive`.)"""
    await asyncio.get_running_loop().sock_sendall(local, data)
