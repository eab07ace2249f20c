"""Sessions: what runs in one, its files, and what becomes of it."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Callable, Iterable, List, Mapping, Optional, Tuple, Type, Union

from .. import _policy, _wire, _wire_records, model, records
from .._proto import checkpoint_pb2, interpreter_pb2, session_pb2, task_pb2
from ..errors import BerthError, strange
from ._files import Files
from ._interpreter import START, Context
from ._ports import PortForward, PortStream
from ._stream import Run, TaskStream
from ._task import Task
from ._transport import Background, sleep

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._options import CommandOptions, CreateOptions
    from ._client import Client

#: Collected output beyond this many bytes of a stream is dropped, unless the caller says otherwise.
COLLECT_LIMIT = 64 << 20


class Session:
    """A session: one workspace and one sandbox. Every method raises `berth.BerthError`."""

    id: str
    """32 lower-case hex digits."""

    def __init__(self, client: Client, session_id: str, epoch: int = 0) -> None:
        """Use `Client.create_session`, `Client.session` or `Client.attach`."""
        self.id = session_id
        self._client = client
        self._transport = client._transport
        #: Of its newest placement, as far as this handle knows. 0: not asked yet.
        self._epoch = epoch
        self.files = Files(client, session_id)

    async def info(self) -> model.SessionInfo:
        """What the coordinator knows of it now."""
        return _wire.session_info(await self._get())

    async def _get(self) -> session_pb2.Session:
        request = session_pb2.GetSessionRequest(session_id=self.id)
        wire: session_pb2.Session = await self._client._call(
            _policy.repeatable(), self._transport.sessions.GetSession, request
        )
        self._epoch = max(self._epoch, wire.epoch)
        return wire

    async def _attempt(self, again: bool) -> _policy.Attempt:
        """A start, said to be first sent to a placement that the session has or has had."""
        if self._epoch == 0:
            await self._get()
        return _policy.Attempt(self._epoch, again)

    async def run(
        self,
        command: _wire.Command,
        *,
        input: Union[bytes, str, None] = None,
        collect_limit: int = COLLECT_LIMIT,
        **options: Unpack[CommandOptions],
    ) -> model.Output:
        """Runs a command to its end and collects its output.

        How it ended is in the answer, a timeout too: only a failure to run it is an error. (`Output.check` makes one of
        an exit code that is not 0.) Should the caller go away, the task ends when its reattach grace is over.

        command: a line for the shell, or a list: the program, looked up in PATH when its name has no slash, and its
            arguments.
        input: written to its standard input, which is then closed.
        collect_limit: bytes of each stream that are kept at most; what comes after is dropped, and `truncated` is set.
        cwd: where it starts: relative to the workspace, or absolute inside the sandbox.
        env: variables, on top of the session's.
        timeout: wall-clock time that it may take; 0 is no limit. If left out the session's default holds (300 s unless set
            otherwise).
        output_limit: bytes on both streams together at which it is ended.
        spool_bytes: bytes kept of each stream on the worker (64 MiB if left out); the oldest go first.
        secrets: the tenant's: names, each a file /run/secrets/NAME, or `{VARIABLE: name}`.
        pty: True or a `PtySize`: on a terminal of its own, with all output on stdout.
        reattach_grace: how long it lives without a watcher (30 s if left out).
        request_id: the same id in a session starts one task only.
        retry_after_recovery: start it again where nobody knows whether it has run.

        Spans of time are seconds or a `timedelta`.
        Raises `BerthError`: SESSION_ENDED, CWD_NOT_FOUND, TOO_MANY_TASKS, SECRET_UNUSABLE and others.
        """
        data = input.encode() if isinstance(input, str) else input
        if data is not None:
            options["stdin"] = True
        async with await self.stream(command, **options) as stream:
            stream.skip_lost = True
            feed = None if data is None else Background(_feed, stream.task, data)
            try:
                return await _collect(stream, collect_limit)
            finally:
                if feed is not None:
                    await feed.stop()

    async def stream(self, command: _wire.Command, **options: Unpack[CommandOptions]) -> TaskStream:
        """Runs a command and hands out its output as it comes. The options are those of `run`, and `stdin` and `detached`.

            async with await session.stream("make") as stream:
                async for event in stream:
                    if isinstance(event, berth.Stdout):
                        print(event.data)
        """
        again = options.pop("retry_after_recovery", False)
        request = task_pb2.RunRequest(
            session_id=self.id,
            request_id=options.pop("request_id", None) or _wire.new_id(),
            task=_wire.task_spec(command, **options),  # type: ignore[misc]
        )
        stream = TaskStream(self._client, self.id, run=Run(request, await self._attempt(again)))
        try:
            await stream._started()
        finally:
            self._epoch = max(self._epoch, stream._epoch)
        return stream

    async def start(
        self, command: _wire.Command, *, input: Union[bytes, str, None] = None, **options: Unpack[CommandOptions]
    ) -> Task:
        """Starts a task and returns at once. The options are those of `run`, and `stdin` and `detached`."""
        data = input.encode() if isinstance(input, str) else input
        if data is not None:
            options["stdin"] = True
        again = options.pop("retry_after_recovery", False)
        request = task_pb2.StartTaskRequest(
            session_id=self.id,
            request_id=options.pop("request_id", None) or _wire.new_id(),
            task=_wire.task_spec(command, **options),  # type: ignore[misc]
        )
        task = Task(self._client, self.id, (await self._start(request, again)).id, stdin_at=0)
        if data is not None:
            await task.write_stdin(data)
            await task.close_stdin()
        return task

    async def _start(self, request: task_pb2.StartTaskRequest, again: bool) -> task_pb2.Task:
        attempt = await self._attempt(again)
        backoff = _policy.Backoff()
        left = _policy.ATTEMPTS
        while True:
            request.if_epoch = attempt.epoch
            try:
                wire: task_pb2.Task = await self._transport.unary(
                    self._transport.tasks.StartTask, request, _policy.DEADLINE
                )
                return wire
            except BerthError as error:
                failed = attempt.failed(error)
                self._epoch = max(self._epoch, attempt.epoch)
            if failed is None:
                continue
            left -= 1
            if left == 0:
                raise failed
            await sleep(backoff.next())

    def task(self, task_id: str) -> Task:
        """A handle for a task that is there already. Asks nothing of the server."""
        return Task(self._client, self.id, task_id)

    async def tasks(self, *, running_only: bool = False) -> List[model.TaskInfo]:
        """All tasks that the session still knows, or those that are not done; newest first."""
        request = task_pb2.ListTasksRequest(session_id=self.id, page_size=100, running_only=running_only)
        found: List[model.TaskInfo] = []
        while True:
            page: task_pb2.ListTasksResponse = await self._client._call(
                _policy.repeatable(), self._transport.tasks.ListTasks, request
            )
            found += [_wire.task_info(task) for task in page.tasks]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def pause(self) -> model.SessionInfo:
        """Freezes its processes. One that stays paused gives its place up after a while: it is parked, and what ran in it
        is gone."""
        request = session_pb2.PauseSessionRequest(session_id=self.id)
        policy = _policy.repeatable(_policy.CHANGE)
        return _wire.session_info(await self._client._call(policy, self._transport.sessions.PauseSession, request))

    async def resume(self) -> model.SessionInfo:
        """Thaws its processes. A parked session is placed anew and is ready with its files when this returns."""
        request = session_pb2.ResumeSessionRequest(session_id=self.id)
        policy = _policy.repeatable(_policy.RESTORE + _policy.LONGEST_WAIT)
        return _wire.session_info(await self._client._call(policy, self._transport.sessions.ResumeSession, request))

    async def update(
        self,
        *,
        set_labels: Optional[Mapping[str, str]] = None,
        remove_labels: Iterable[str] = (),
        ttl: Optional[model.Seconds] = None,
        idle_timeout: Optional[model.Seconds] = None,
        egress: Optional[model.Egress] = None,
    ) -> model.SessionInfo:
        """Changes it. What is left out stays as it is.

        ttl: a new life span, from now; 0 is none.
        egress: in place of its whole policy. Open connections that it no longer allows are cut.
        """
        request = session_pb2.UpdateSessionRequest(
            session_id=self.id,
            set_labels=set_labels,
            remove_labels=remove_labels,
            ttl=_wire.duration_out(ttl),
            idle_timeout=_wire.duration_out(idle_timeout),
            egress=_wire.egress_out(egress),
        )
        method = self._transport.sessions.UpdateSession
        return _wire.session_info(await self._client._call(_policy.repeatable(), method, request))

    async def delete(self, *, skip_checkpoint: bool = False) -> model.SessionInfo:
        """Ends it and removes its files, after a checkpoint if its policy asks for one. No error if it has ended already."""
        request = session_pb2.DeleteSessionRequest(session_id=self.id, skip_checkpoint=skip_checkpoint)
        policy = _policy.repeatable(_policy.CHANGE + (0 if skip_checkpoint else _policy.TAKE))
        return _wire.session_info(await self._client._call(policy, self._transport.sessions.DeleteSession, request))

    async def checkpoint(self, *, note: str = "", keep_for: Optional[model.Seconds] = None) -> model.CheckpointInfo:
        """Takes a checkpoint and returns when it is stored. The session's tasks stand still while its files are read.

        note: for people, at most 256 bytes.
        keep_for: removed after this long. If left out it is kept until it is deleted.
        """
        request = checkpoint_pb2.CheckpointSessionRequest(
            session_id=self.id, note=note, keep_for=_wire.duration_out(keep_for)
        )
        method = self._transport.checkpoints.CheckpointSession
        return _wire.checkpoint_info(await self._client._call(_policy.once(_policy.TAKE), method, request))

    async def fork(
        self, count: int = 1, **options: Unpack[CreateOptions]
    ) -> Tuple[List[Session], model.CheckpointInfo]:
        """Takes a checkpoint and makes so many sessions of it, 1 to 100, each as `Client.restore` does.

        The checkpoint stays until it is deleted. Should one session fail, the others stay: `details["sessions"]` of the
        error has their ids, with commas between them.
        """
        if count < 1:
            raise BerthError("a fork makes at least one session")
        options.setdefault("request_id", "")
        request = checkpoint_pb2.ForkSessionRequest(
            session_id=self.id, count=count, session=_wire.create_request(**options)
        )
        wait = request.session.wait_for_place.seconds if "wait" in options else _policy.WAIT_FOR_PLACE
        policy = _policy.once(wait + _policy.TAKE + _policy.RESTORE)
        wire: checkpoint_pb2.ForkSessionResponse = await self._client._call(
            policy, self._transport.checkpoints.ForkSession, request
        )
        sessions = [Session(self._client, session.id, session.epoch) for session in wire.sessions]
        return sessions, _wire.checkpoint_info(wire.checkpoint)

    async def create_context(
        self,
        *,
        cwd: str = "",
        env: Optional[Mapping[str, str]] = None,
        executable: str = "",
    ) -> Context:
        """Starts a Python interpreter whose state stays from one execution to the next: a Jupyter kernel where the sandbox has one,
        else a small one with text results. Returns when it takes code.

        executable: the interpreter, such as that of a virtual environment. If left out `python3`.
        """
        request = interpreter_pb2.CreateContextRequest(
            session_id=self.id, cwd=cwd, env=env, executable=executable, request_id=_wire.new_id()
        )
        wire: interpreter_pb2.InterpreterContext = await self._client._call(
            _policy.repeatable(START), self._transport.contexts.CreateContext, request
        )
        return Context(self._client, self.id, wire.id)

    def context(self, context_id: str) -> Context:
        """One that is there. It is not asked whether it is."""
        return Context(self._client, self.id, context_id)

    async def contexts(self) -> List[model.ContextInfo]:
        """Its interpreters, oldest first."""
        request = interpreter_pb2.ListContextsRequest(session_id=self.id)
        wire: interpreter_pb2.ListContextsResponse = await self._client._call(
            _policy.repeatable(), self._transport.contexts.ListContexts, request
        )
        return [_wire.context_info(context) for context in wire.contexts]

    async def usage(self) -> records.SessionUsage:
        """What its tasks take now, and have taken. A paused session answers too; one that is parked or has ended takes nothing,
        which is an error. To ask keeps no session from being idle."""
        request = task_pb2.GetUsageRequest(session_id=self.id)
        return _wire_records.session_usage(
            await self._client._call(_policy.repeatable(), self._transport.tasks.GetUsage, request)
        )

    async def artifacts(self) -> records.ArtifactList:
        """The files that its tasks left in /workspace/artifacts. `Client.read_artifact` reads one."""
        return await self._client.list_artifacts(self.id)

    async def connect_port(self, port: int) -> PortStream:
        """Connects to a server that listens on this port of the session's own loopback.

            async with await session.connect_port(8000) as stream:
                await stream.write(b"GET / HTTP/1.0\r\n\r\n")
                print(await stream.read())

        Raises `BerthError`: PORT_CLOSED when nobody listens, TOO_MANY_CONNECTIONS.
        """
        return await PortStream._open(self._client, self.id, port)

    async def forward_port(
        self,
        port: int,
        *,
        local_port: int = 0,
        listen: str = "127.0.0.1",
        expose: bool = False,
        on_error: Optional[Callable[[BerthError], None]] = None,
    ) -> PortForward:
        """Listens here for a server in the session, as `berth port-forward` does: each connection that comes in is one of its own
        to the server inside. It is meant for a `with`, at whose end nothing listens any more.

            async with await session.forward_port(8000) as forward:
                print(f"http://127.0.0.1:{forward.local_port}/")

        port: the server's.
        local_port: where to listen; 0 is a free port.
        listen: an address of this machine. Whoever reaches it reaches the server, without a token: one that is not loopback
            needs `expose`.
        on_error: told of each connection that could not be made, or broke. It is reset here in any case.
        """
        return await PortForward._listen(self, port, local_port, listen, expose, on_error)

    def __repr__(self) -> str:
        return f"Session({self.id})"


class SessionContext:
    """A session for the length of a `with`: see `Client.session`."""

    def __init__(self, client: Client, options: CreateOptions) -> None:
        self._client = client
        self._options = options
        self._session: Optional[Session] = None

    async def __aenter__(self) -> Session:
        self._session = await self._client.create_session(**self._options)
        return self._session

    async def __aexit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if self._session is None:
            return
        try:
            await self._session.delete()
        except BerthError:
            # What went wrong inside says more than that the session could not be deleted after it.
            if error is None:
                raise


async def _feed(task: Task, data: bytes) -> None:
    try:
        await task.write_stdin(data)
        await task.close_stdin()
    # A program that ends before it read all of its input is no error here.
    except BerthError:
        pass


async def _collect(stream: TaskStream, limit: int) -> model.Output:
    kept = {model.Stdout: bytearray(), model.Stderr: bytearray()}
    truncated = False
    async for event in stream:
        if isinstance(event, model.Lost):
            truncated = True
        elif isinstance(event, model.Ended):
            end = event.info.end
            if end is None:
                raise strange("a task ended without an outcome")
            return model.Output(
                task=event.info.id,
                outcome=end.outcome,
                message=end.message,
                stdout=bytes(kept[model.Stdout]),
                stderr=bytes(kept[model.Stderr]),
                truncated=truncated,
                duration=end.duration,
                usage=end.usage,
            )
        else:
            so_far = kept[type(event)]
            room = max(limit - len(so_far), 0)
            so_far += event.data[:room]
            truncated |= room < len(event.data)
    raise strange("the stream ended before the task")
