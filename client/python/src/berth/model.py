"""What the coordinator tells, as plain values: durations are seconds, sizes are bytes, times are `datetime` in UTC,
states are words."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Dict, List, Mapping, Optional, Sequence, Union

import grpc

from .errors import BerthError

Time = Optional[datetime.datetime]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a session may use. In a request what is left out comes from the template; in an answer all are set."""

    cpu_millis: Optional[int] = None
    """Thousandths of a core."""
    memory_bytes: Optional[int] = None
    """Of all tasks of the session together."""
    disk_bytes: Optional[int] = None
    """Size of the workspace."""
    pids: Optional[int] = None
    """Processes and threads of all tasks of the session together."""


@dataclasses.dataclass(frozen=True)
class Egress:
    """What a session may reach beyond its own loopback, by way of a proxy that looks at each connection."""

    preset: str = "none"
    """`none`, `packages` (the worker's package index), or `full` (any public address, where the operator allows it)."""
    allow: Sequence[str] = ()
    """`host`, `*.domain` or an address range, each with `:port` or for ports 80 and 443. At most 64."""


@dataclasses.dataclass(frozen=True)
class CheckpointPolicy:
    """Checkpoints that are taken without being asked for."""

    interval: Optional[float] = None
    """Seconds between two, at least 1. None: none at intervals."""
    on_drain: bool = False
    """When its worker is drained or stops."""
    before_delete: bool = False
    """Before it is deleted. A checkpoint that fails keeps the session."""
    keep: int = 0
    """So many of these are kept, the newest. 0: 3."""
    keep_for: Optional[float] = None
    """Seconds. None: a week."""


@dataclasses.dataclass(frozen=True)
class PtySize:
    """Size of a terminal in characters."""

    cols: int
    rows: int


@dataclasses.dataclass(frozen=True)
class SessionInfo:
    """A session as it stood when it was told."""

    id: str
    """32 lower-case hex digits."""
    state: str
    """`pending`, `placed`, `ready`, `paused`, `parked`, `ending` or `ended`."""
    end_reason: Optional[str]
    """Why it ended, e.g. `deleted`, `ttl_expired`, `idle`, `worker_lost`."""
    message: str
    """For people: why it waits, or why it ended."""
    template: str
    worker: Optional[str]
    """None until it is placed."""
    epoch: int
    """Of its placement; 0 before the first."""
    backend: str
    """The sandbox backend in use: native, docker or fake."""
    limits: Limits
    labels: Mapping[str, str]
    priority: int
    created_at: Time
    ready_at: Time
    ended_at: Time
    expires_at: Time
    """When its life span ends it. None: never."""
    idle_timeout: Optional[float]
    """Seconds. None: none."""
    on_worker_loss: str
    """`end` or `restore`."""
    checkpoint_id: Optional[str]
    """The newest from which it can be restored."""
    checkpointed_at: Time
    recovered_from: Optional[str]
    """Set after a recovery: what happened after `recovered_to` is lost."""
    recovered_to: Time
    parked_at: Time
    """Set when it was parked: its files are as of then, and what ran in it is gone."""
    tenant: str
    queue_position: Optional[int]
    """While it is pending: 1 is the next to be tried."""
    egress: Egress


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a task ended. Exactly one for each task, and it never changes."""

    kind: str
    """`exited`, `signaled`, `timed_out`, `out_of_memory`, `output_limit`, `cancelled`, `session_ended`, `worker_lost`
    or `sandbox_failed`."""
    code: Optional[int] = None
    """The exit code of one that exited."""
    signal: Optional[int] = None
    """The signal that ended it, which Berth did not send."""

    def __str__(self) -> str:
        if self.kind == "exited":
            return f"exited with {self.code}"
        if self.kind == "signaled":
            return f"ended by signal {self.signal}"
        return self.kind.replace("_", " ")


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a task used."""

    cpu_user: float
    """Seconds."""
    cpu_system: float
    """Seconds."""
    peak_memory_bytes: int
    """0 when the machine can't tell."""
    oom_kills: int
    """Processes of the task that the kernel killed for want of memory."""


@dataclasses.dataclass(frozen=True)
class TaskEnd:
    """How a task ended."""

    outcome: Outcome
    message: str
    """For people, when there is more to say than the outcome does."""
    ended_at: Time
    duration: float
    """Seconds."""
    usage: Usage


@dataclasses.dataclass(frozen=True)
class StreamPosition:
    """Where an output stream stands. Offsets count from the task's first byte."""

    length: int
    """Bytes written so far."""
    first_kept: int
    """The oldest byte still kept."""


@dataclasses.dataclass(frozen=True)
class TaskInfo:
    """A task as it stood when it was told."""

    id: str
    session: str
    state: str
    """`queued`, `dispatched`, `running` or `done`."""
    argv: Sequence[str]
    """Empty for a shell line."""
    shell: Optional[str]
    cwd: str
    """Empty: the workspace."""
    pid: int
    """Inside the sandbox's own PID namespace."""
    started_at: Time
    stdout: StreamPosition
    stderr: StreamPosition
    end: Optional[TaskEnd]
    """Set when the state is `done`."""


@dataclasses.dataclass(frozen=True)
class Output:
    """What came of a command."""

    task: str
    outcome: Outcome
    message: str
    """For people, when there is more to say than the outcome does."""
    stdout: bytes
    stderr: bytes
    truncated: bool
    """Not all of the output is here: it was more than the collect limit, or more than the worker keeps."""
    duration: float
    """Seconds."""
    usage: Usage

    @property
    def ok(self) -> bool:
        """It exited with 0."""
        return self.outcome.code == 0

    @property
    def code(self) -> Optional[int]:
        """The exit code, if the program exited by itself."""
        return self.outcome.code

    @property
    def stdout_text(self) -> str:
        """stdout as text; what is not UTF-8 becomes U+FFFD."""
        return self.stdout.decode("utf-8", "replace")

    @property
    def stderr_text(self) -> str:
        """stderr as text; what is not UTF-8 becomes U+FFFD."""
        return self.stderr.decode("utf-8", "replace")

    def check(self) -> Output:
        """Itself, if it exited with 0.

        Raises `TaskFailed` if not.
        """
        if not self.ok:
            raise TaskFailed(self)
        return self


class TaskFailed(Exception):
    """A task did not exit with 0 (`Output.check`)."""

    output: Output

    def __init__(self, output: Output) -> None:
        self.output = output
        end = output.stderr_text.strip().splitlines()[-1:]
        super().__init__(": ".join([f"the task {output.outcome}", *end]))


@dataclasses.dataclass(frozen=True)
class Stdout:
    """Bytes of a task's standard output."""

    data: bytes


@dataclasses.dataclass(frozen=True)
class Stderr:
    """Bytes of a task's standard error."""

    data: bytes


@dataclasses.dataclass(frozen=True)
class Lost:
    """Output that the worker no longer keeps: bytes `start` to `end`. Only with `skip_lost`."""

    stream: str
    """`stdout` or `stderr`."""
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Ended:
    """The last event of a task."""

    info: TaskInfo


TaskEvent = Union[Stdout, Stderr, Lost, Ended]


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """A file, directory or link in a session."""

    path: str
    """As it was asked for; in a listing, relative to the listed directory."""
    type: str
    """`file`, `directory`, `symlink` or `other`."""
    size: int
    """In bytes."""
    mode: int
    """Permission bits."""
    uid: int
    gid: int
    modified_at: Time
    symlink_target: Optional[str]
    path_bytes: Optional[bytes]
    """The whole path, set only when it is not UTF-8; `path` then has U+FFFD in it."""

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return self.type == "directory"

    @property
    def is_file(self) -> bool:
        """Whether it is an ordinary file."""
        return self.type == "file"


@dataclasses.dataclass(frozen=True)
class SearchMatch:
    """A line that matches a search. Of each line as much as is told: 512 bytes."""

    path: str
    """Below the path that was searched; that path itself if it is a file."""
    line: int
    """Counted from 1."""
    text: str
    before: List[str]
    """Lines before it, if they were asked for."""
    after: List[str]
    path_bytes: Optional[bytes]
    """The whole path, set only when it is not UTF-8; `path` then has U+FFFD in it."""


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What a search found."""

    matches: List[SearchMatch]
    """In the order of paths and lines."""
    files_searched: int
    files_skipped: int
    """No text, too large, or not to be read."""
    limit: Optional[str]
    """Why there may be more: `matches` (as many as were asked for) or `time`. None: these are all."""


@dataclasses.dataclass(frozen=True)
class Unpacked:
    """What was in an archive."""

    files: int
    directories: int
    links: int
    bytes: int
    """Of content."""


@dataclasses.dataclass(frozen=True)
class FileChange:
    """Something has changed in a watched directory."""

    kind: str
    """`created`, `written`, `removed`, `renamed` or `chmod`; or `overflow`: changes were lost, list again."""
    path: str
    """Relative to the watched directory; empty: that itself. When renamed, the old name."""
    new_path: Optional[str]
    """When renamed, and still within what is watched."""
    directory: bool
    entry: Optional[FileInfo]
    """What is there, if that was asked for and it still is."""
    path_bytes: Optional[bytes]
    """The whole path, set only when it is not UTF-8; `path` then has U+FFFD in it."""
    new_path_bytes: Optional[bytes]


@dataclasses.dataclass(frozen=True)
class ContextInfo:
    """A stateful interpreter of a session."""

    id: str
    state: str
    """`starting`, `idle`, `busy` or `dead`."""
    kernel: str
    """`ipykernel`, or `builtin`: results are text."""
    version: str
    """Of the interpreter."""
    cwd: str
    created_at: Time
    executions: int
    message: str
    """Why it is dead."""


@dataclasses.dataclass(frozen=True)
class Bundle:
    """One thing in several forms, such as a plot: the reader takes the best that it can show."""

    data: Dict[str, bytes]
    """By type, such as `text/plain` and `image/png`. Text is UTF-8."""
    left_out: List[str]
    """Types that were too large."""

    @property
    def text(self) -> Optional[str]:
        """As plain text, if it has that form."""
        plain = self.data.get("text/plain")
        return None if plain is None else plain.decode(errors="replace")


@dataclasses.dataclass(frozen=True)
class ExecutionError:
    """The exception that ended an execution."""

    name: str
    value: str
    traceback: str
    """For people; without colours."""


@dataclasses.dataclass(frozen=True)
class Execution:
    """What came of an execution."""

    number: int
    """Of the context, counted from 1."""
    kernel: str
    outcome: str
    """`ok`, `error`, `interrupted`, `timed_out`, `died`, `cancelled` or `session_ended`."""
    message: str
    stdout: bytes
    stderr: bytes
    result: Optional[Bundle]
    """The last expression's value, unless that is None."""
    displays: List[Bundle]
    """What the code shows: plots, tables."""
    error: Optional[ExecutionError]
    duration: float
    """In seconds."""
    output_lost: int
    """Bytes that were left out."""

    @property
    def ok(self) -> bool:
        """Whether it went through."""
        return self.outcome == "ok"

    @property
    def text(self) -> Optional[str]:
        """The result as plain text, if there is one."""
        return None if self.result is None else self.result.text


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """A restorable copy of a session's files and of what its finished tasks said."""

    id: str
    session: str
    created_at: Time
    template: str
    labels: Mapping[str, str]
    note: str
    cause: str
    """`requested`, `interval`, `drain`, `delete` or `parked`."""
    entries: int
    """Files, directories and links."""
    content_bytes: int
    """Of all files together."""
    stored_bytes: int
    """What this checkpoint added to the store, compressed."""
    frozen_for: float
    """Seconds that the session's tasks stood still."""
    skipped: int
    """Entries that were left out: sockets, devices, pipes, and what could not be read."""
    expires_at: Time
    """None: it is kept until it is deleted."""


#: A span of time: seconds, or a `timedelta`.
Seconds = Union[int, float, datetime.timedelta]


def seconds(value: Seconds) -> float:
    """A span in seconds. Raises `BerthError` for one that is negative or no number."""
    number = value.total_seconds() if isinstance(value, datetime.timedelta) else float(value)
    if not 0 <= number <= 10 * 365 * 86_400:
        raise BerthError(f"{value!r} is no span of time", code=grpc.StatusCode.INVALID_ARGUMENT)
    return number
