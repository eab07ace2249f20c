# Made by generate.py of aio/_task.py: don't change it here.
"""A task that is there: watched, waited for, fed, signalled, cancelled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from .. import _policy, _wire, model
from .._proto import common_pb2, task_pb2
from ._transport import Lock, sleep

if TYPE_CHECKING:
    from ._client import Client
    from ._stream import TaskStream

#: One wait on the server, in seconds; longer ones are made of several, so that each has a deadline.
ONE_WAIT = 60.0
#: Time between TERM and KILL where nothing is said, in seconds.
GRACE = 2.0


class Task:
    """A task of a session. Every method raises `berth.BerthError`."""

    id: str
    """32 lower-case hex digits."""

    def __init__(self, client: Client, session_id: str, task_id: str, stdin_at: Optional[int] = None) -> None:
        """Use `Session.start`, `Session.task` or `TaskStream.task`."""
        self.id = task_id
        self._client = client
        self._session_id = session_id
        #: Bytes of standard input taken so far; None: others may have written, so the first write goes to the end.
        self._stdin_at = stdin_at
        #: Held across a write on purpose: input has an order.
        self._order = Lock()

    def _ask(self, method: Callable[..., Any], request: Any, policy: _policy.Policy) -> Any:
        request.session_id, request.task_id = self._session_id, self.id
        return self._client._call(policy, method, request)

    def info(self) -> model.TaskInfo:
        """The task as it stands now."""
        request = task_pb2.GetTaskRequest()
        method = self._client._transport.tasks.GetTask
        return _wire.task_info(self._ask(method, request, _policy.repeatable()))

    def watch(
        self, *, stdout_offset: int = 0, stderr_offset: int = 0, skip_lost: bool = True, follow: bool = True
    ) -> TaskStream:
        """Its output as it comes.

        stdout_offset, stderr_offset: of the first byte wanted.
        skip_lost: go on where output is no longer kept, with `Lost`; otherwise that is the error OUTPUT_LOST.
        follow: go on until the task ends; otherwise stop at what there is now.
        """
        from ._stream import TaskStream

        stream = TaskStream(
            self._client,
            self._session_id,
            task=self,
            offsets=(stdout_offset, stderr_offset),
            skip_lost=skip_lost,
            follow=follow,
        )
        stream._started()
        return stream

    def wait(self, timeout: Optional[model.Seconds] = None) -> model.TaskInfo:
        """Waits until it is done, or the time is over: its `state` says which."""
        left = None if timeout is None else model.seconds(timeout)
        method = self._client._transport.tasks.WaitTask
        while True:
            span = ONE_WAIT if left is None else min(left, ONE_WAIT)
            request = task_pb2.WaitTaskRequest(timeout=_wire.duration_out(span))
            info = _wire.task_info(self._ask(method, request, _policy.repeatable(span + 15)))
            left = None if left is None else left - span
            if info.state == "done" or (left is not None and left <= 0):
                return info

    def write_stdin(self, data: Union[bytes, str]) -> None:
        """Writes all of `data` to its standard input, in order with other writes through this handle, each byte once even
        if the connection breaks. Returns when the task's pipe has taken it: a program that does not read makes this wait.

        Raises `BerthError`: NO_STDIN, TASK_DONE.
        """
        rest = memoryview(data.encode() if isinstance(data, str) else data)
        method = self._client._transport.tasks.WriteStdin
        with self._order:
            while rest:
                piece = bytes(rest[: _wire.CHUNK])
                request = task_pb2.WriteStdinRequest(offset=self._stdin_at, data=piece)
                # Only a write at a known place is safe to repeat. A full pipe may take as long as its reader does.
                policy = _policy.once(None) if self._stdin_at is None else _policy.repeatable(None)
                taken: int = (self._ask(method, request, policy)).offset
                # Bytes beyond this piece would be another writer's.
                progress = len(piece) if self._stdin_at is None else min(max(taken - self._stdin_at, 0), len(piece))
                self._stdin_at = taken
                rest = rest[progress:]
                if progress == 0:
                    sleep(0.02)

    def close_stdin(self) -> None:
        """Ends its standard input."""
        with self._order:
            request = task_pb2.CloseStdinRequest()
            self._ask(self._client._transport.tasks.CloseStdin, request, _policy.repeatable())

    def resize(self, size: model.PtySize) -> None:
        """Tells its terminal a new size. Raises `BerthError`: NO_PTY."""
        request = task_pb2.ResizePtyRequest(size=common_pb2.PtySize(cols=size.cols, rows=size.rows))
        self._ask(self._client._transport.tasks.ResizePty, request, _policy.repeatable())

    def signal(self, signal: int) -> None:
        """Signals its main process and process group. `signal` is Linux's number, or a `signal.Signals`."""
        request = task_pb2.SignalTaskRequest(signal=int(signal))
        self._ask(self._client._transport.tasks.SignalTask, request, _policy.once())

    def cancel(self, grace: model.Seconds = GRACE) -> model.TaskInfo:
        """Ends it: TERM, and after the grace (at most 60 s) KILL to all that it started. Returns when it is done.
        Cancelling a task that is done changes nothing."""
        request = task_pb2.CancelTaskRequest(grace=_wire.duration_out(grace))
        policy = _policy.repeatable(model.seconds(grace) + 30)
        return _wire.task_info(self._ask(self._client._transport.tasks.CancelTask, request, policy))

    def __repr__(self) -> str:
        return f"Task({self.id} of {self._session_id})"
