# Made by generate.py of aio/_stream.py: don't change it here.
"""A task's output as it comes, over connections that break.

The stream knows by byte offset what it has handed out; after a break it asks for the rest from there, for a bounded time,
and drops what comes twice. So: a gap-free prefix, or an error that says what is missing.

A `Run` whose answer was lost before its first event is sent again under the same request id, by which the worker knows that
it started that task already. A session that is lost with its machine may go on elsewhere, without the task: then the stream
ends with what GetTask tells of it.
"""

from __future__ import annotations

import collections
from types import TracebackType
from typing import TYPE_CHECKING, Iterator, Deque, Dict, NamedTuple, Optional, Tuple, Type

from .. import _policy, _wire, model
from .._proto import task_pb2
from ..errors import BerthError, Reason, broken, output_lost, strange
from ._task import Task
from ._transport import Incoming, now, sleep

if TYPE_CHECKING:
    from ._client import Client


class Run(NamedTuple):
    """How to start a task."""

    request: task_pb2.RunRequest
    attempt: _policy.Attempt


class TaskStream:
    """Output of a task, as it comes: iterate over it for events, the last of which is `Ended`."""

    skip_lost: bool
    """Go on where output is no longer kept, with `Lost`; otherwise that is the error OUTPUT_LOST."""

    def __init__(
        self,
        client: Client,
        session_id: str,
        *,
        run: Optional[Run] = None,
        task: Optional[Task] = None,
        offsets: Tuple[int, int] = (0, 0),
        skip_lost: bool = False,
        follow: bool = True,
    ) -> None:
        """Use `Session.stream` or `Task.watch`."""
        self.skip_lost = skip_lost
        self._client = client
        self._session_id = session_id
        self._run = run
        self._epoch = run.attempt.epoch if run is not None else 0
        self._task = task
        self._info: Optional[model.TaskInfo] = None
        self._at: Dict[str, int] = {"stdout": offsets[0], "stderr": offsets[1]}
        self._follow = follow
        self._inner: Optional[Incoming] = None
        self._pending: Deque[model.TaskEvent] = collections.deque()
        self._finished = False
        #: When something last came.
        self._alive = now()
        self._backoff = _policy.Backoff()
        #: Why there is no stream now.
        self._broken: Optional[BerthError] = None

    @property
    def task(self) -> Task:
        """The task, to write to it or to end it."""
        if self._task is None:
            raise strange("a stream of no task")
        return self._task

    @property
    def info(self) -> model.TaskInfo:
        """The task as it stood when the stream began."""
        if self._info is None:
            raise strange("a stream that has not begun")
        return self._info

    @property
    def stdout_offset(self) -> int:
        """Bytes of stdout handed out, counted from the task's first."""
        return self._at["stdout"]

    @property
    def stderr_offset(self) -> int:
        """Bytes of stderr handed out, counted from the task's first."""
        return self._at["stderr"]

    def __iter__(self) -> Iterator[model.TaskEvent]:
        return self

    def __next__(self) -> model.TaskEvent:
        event = self.next()
        if event is None:
            raise StopIteration
        return event

    def next(self) -> Optional[model.TaskEvent]:
        """The next event. None: the task has ended, or what there is has been told.

        Raises `BerthError`: OUTPUT_LOST without `skip_lost`; what broke the stream, if it could not be resumed in time.
        """
        while not self._pending:
            if self._finished:
                return None
            try:
                self._advance()
            except BerthError:
                self.close()
                raise
        return self._pending.popleft()

    def close(self) -> None:
        """Stops watching. An attached task lives for its reattach grace then; `task.cancel` ends it at once."""
        self._finished = True
        if self._inner is not None:
            self._inner.cancel()
            self._inner = None

    def __enter__(self) -> TaskStream:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def _started(self) -> None:
        """Waits for the first event, which tells which task it is."""
        try:
            while self._info is None:
                if self._finished:
                    raise strange("the stream ended before it began")
                self._advance()
        except BaseException:
            self.close()
            raise

    def _advance(self) -> None:
        """Opens the stream if there is none, else takes one message from it."""
        if self._inner is None:
            return self._open()
        try:
            message = self._inner.next()
        except BerthError as error:
            if self._info is not None and error.reason in (Reason.TASK_NOT_FOUND, Reason.SESSION_ENDED):
                return self._ended_without_us(error)
            return self._broke(error)
        if message is None:
            if not self._follow:
                self._finished = True
                return None
            return self._broke(broken(self._client.address, "the stream ended before the task did"))
        self._alive = now()
        self._backoff = _policy.Backoff()
        self._broken = None
        self._take(message)

    def _broke(self, error: BerthError) -> None:
        """The stream is gone: to be resumed, or for good."""
        if self._inner is not None:
            self._inner.cancel()
            self._inner = None
        if self._run is not None:
            self._broken = self._run.attempt.failed(error)
            self._epoch = self._run.attempt.epoch
            return
        skippable = error.reason == Reason.OUTPUT_LOST and self.skip_lost and self._broken is None
        # Its machine was lost, and it is made ready elsewhere.
        moves = error.reason == Reason.SESSION_NOT_READY and self._info is not None
        if not (error.is_temporary or skippable or moves):
            raise error
        self._broken = error

    def _ended_without_us(self, error: BerthError) -> None:
        """The task is not there any more to be watched: what is known of it is the end of it."""
        if self._inner is not None:
            self._inner.cancel()
            self._inner = None
        try:
            info = self.task.info()
        except BerthError as told:
            return self._broke(told)
        if info.state != "done":
            raise error
        self._ended(info)

    def _open(self) -> None:
        """Opens, or after a break resumes, the stream."""
        if self._broken is not None:
            first = self._info is None
            window = _policy.FIRST_WINDOW if first else self._client._resume_for
            if now() - self._alive > window or (first and self._broken.is_not_connected):
                raise self._broken
            sleep(self._backoff.next())
        transport = self._client._transport
        if self._run is not None:
            self._run.request.if_epoch = self._run.attempt.epoch
            self._inner = transport.stream(transport.tasks.Run, self._run.request)
        else:
            request = task_pb2.WatchTaskRequest(
                session_id=self._session_id,
                task_id=self.task.id,
                stdout_offset=self._at["stdout"],
                stderr_offset=self._at["stderr"],
                skip_lost=self.skip_lost,
                no_follow=not self._follow,
            )
            self._inner = transport.stream(transport.tasks.WatchTask, request)

    def _take(self, message: task_pb2.TaskEvent) -> None:
        kind = message.WhichOneof("event")
        if kind == "started":
            info = _wire.task_info(message.started)
            if self._task is None:
                self._task = Task(self._client, self._session_id, info.id, stdin_at=0)
            self._run = None
            self._info = self._info or info
        elif kind == "stdout":
            self._output("stdout", message.stdout)
        elif kind == "stderr":
            self._output("stderr", message.stderr)
        elif kind == "ended":
            self._ended(_wire.task_info(message.ended))
        # Else a keepalive, or a kind of event that a later version may add.

    def _ended(self, info: model.TaskInfo) -> None:
        # All that is kept has come: what is still missing is gone.
        self._missing("stdout", info.stdout.length)
        self._missing("stderr", info.stderr.length)
        self._pending.append(model.Ended(info))
        self.close()

    def _missing(self, stream: str, to: int) -> None:
        """Goes on at `to`, and says what is passed over."""
        start = self._at[stream]
        if to <= start:
            return
        if not self.skip_lost:
            raise output_lost(stream, start, to)
        self._at[stream] = to
        self._pending.append(model.Lost(stream, start, to))

    def _output(self, stream: str, chunk: task_pb2.OutputChunk) -> None:
        """Hands out what is new of a chunk."""
        end = chunk.offset + len(chunk.data)
        at = self._at[stream]
        if end <= at:
            return
        self._missing(stream, chunk.offset)
        new = chunk.data[max(at - chunk.offset, 0) :]
        self._at[stream] = end
        self._pending.append(model.Stdout(new) if stream == "stdout" else model.Stderr(new))
