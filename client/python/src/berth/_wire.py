"""The one place where messages become values, and values messages. (Those of `records`: `_wire_records`.)"""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from typing import Any, Iterable, List, Mapping, Optional, Sequence, Union

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from . import model
from ._proto import checkpoint_pb2, common_pb2, file_pb2, interpreter_pb2, session_pb2, task_pb2
from .errors import BerthError, strange
from .model import Seconds, seconds

#: Bytes of a file or of standard input that go in one message.
CHUNK = 256 << 10

#: What to run: a line for the shell, or a program with its arguments.
Command = Union[str, Sequence[str]]
#: Names of secrets, each a file /run/secrets/NAME; or variables, each with the name of its secret.
Secrets = Union[Sequence[str], Mapping[str, str]]


def new_id() -> str:
    """A request id that nobody has used."""
    return uuid.uuid4().hex


def duration_out(value: Optional[Seconds]) -> Optional[Duration]:
    """A span of time. None stays None, which leaves the field out."""
    if value is None:
        return None
    whole, part = divmod(round(seconds(value) * 1e9), 1_000_000_000)
    return Duration(seconds=whole, nanos=part)


def _duration(wire: Duration) -> float:
    return wire.seconds + wire.nanos / 1e9


def _limit(wire: Duration) -> Optional[float]:
    """Zero and absent both say "none"."""
    return _duration(wire) or None


def time_in(message: Any, field: str) -> model.Time:
    """A time that a message may have."""
    if not message.HasField(field):
        return None
    wire: Timestamp = getattr(message, field)
    return datetime.datetime.fromtimestamp(0, datetime.timezone.utc) + datetime.timedelta(
        seconds=wire.seconds, microseconds=wire.nanos // 1000
    )


def _word(enum: Any, value: int, prefix: str) -> str:
    """`SESSION_STATE_READY` as `ready`. A value of a later version is its number."""
    try:
        name: str = enum.Name(value)
    except ValueError:
        return str(value)
    return name[len(prefix) :].lower()


def create_request(
    *,
    template: str = "",
    limits: Optional[model.Limits] = None,
    env: Optional[Mapping[str, str]] = None,
    labels: Optional[Mapping[str, str]] = None,
    name: Optional[str] = None,
    ttl: Optional[Seconds] = None,
    idle_timeout: Optional[Seconds] = None,
    egress: Optional[model.Egress] = None,
    worker_selector: Optional[Mapping[str, str]] = None,
    priority: int = 0,
    wait: Optional[Seconds] = None,
    task_timeout: Optional[Seconds] = None,
    max_concurrent_tasks: Optional[int] = None,
    on_worker_loss: Optional[str] = None,
    checkpoints: Optional[model.CheckpointPolicy] = None,
    request_id: Optional[str] = None,
) -> session_pb2.CreateSessionRequest:
    """What kind of session to make. (The parameters are told of in `Client.create_session`.)"""
    losses: Mapping[Optional[str], session_pb2.OnWorkerLoss] = {
        None: session_pb2.ON_WORKER_LOSS_UNSPECIFIED,
        "end": session_pb2.ON_WORKER_LOSS_END,
        "restore": session_pb2.ON_WORKER_LOSS_RESTORE,
    }
    if on_worker_loss not in losses:
        raise BerthError(f"on_worker_loss is 'end' or 'restore', not {on_worker_loss!r}")
    all_labels = {**(labels or {}), **({"name": name} if name is not None else {})}
    with checked():
        return session_pb2.CreateSessionRequest(
            request_id=new_id() if request_id is None else request_id,
            template=template,
            limits=common_pb2.Limits(**dataclasses.asdict(limits or model.Limits())),
            env=env,
            labels=all_labels,
            ttl=duration_out(ttl),
            idle_timeout=duration_out(idle_timeout),
            worker_selector=worker_selector,
            priority=priority,
            wait_for_place=duration_out(wait),
            task_defaults=common_pb2.TaskDefaults(
                timeout=duration_out(task_timeout), max_concurrent=max_concurrent_tasks
            ),
            on_worker_loss=losses[on_worker_loss],
            checkpoints=checkpoint_policy(checkpoints),
            egress=egress_out(egress),
        )


def checkpoint_policy(policy: Optional[model.CheckpointPolicy]) -> Optional[session_pb2.CheckpointPolicy]:
    """None stays None, which leaves the field out."""
    if policy is None:
        return None
    return session_pb2.CheckpointPolicy(
        interval=duration_out(policy.interval),
        on_drain=policy.on_drain,
        before_delete=policy.before_delete,
        keep=policy.keep,
        keep_for=duration_out(policy.keep_for),
    )


def egress_out(egress: Optional[model.Egress]) -> Optional[common_pb2.Egress]:
    """None stays None, which leaves the field out."""
    return None if egress is None else common_pb2.Egress(preset=egress.preset, allow=egress.allow)


def task_spec(
    command: Command,
    *,
    cwd: str = "",
    env: Optional[Mapping[str, str]] = None,
    timeout: Optional[Seconds] = None,
    output_limit: int = 0,
    spool_bytes: int = 0,
    pty: Union[bool, model.PtySize] = False,
    stdin: bool = False,
    detached: bool = False,
    reattach_grace: Optional[Seconds] = None,
    secrets: Secrets = (),
) -> task_pb2.TaskSpec:
    """What to run. (The parameters are told of in `Session.run`.)"""
    if isinstance(secrets, str):
        raise BerthError("secrets are a list of names, not one text")
    if isinstance(secrets, Mapping):
        uses = [task_pb2.SecretUse(name=secret, env=variable) for variable, secret in secrets.items()]
    else:
        uses = [task_pb2.SecretUse(name=secret) for secret in secrets]
    size = common_pb2.PtySize(cols=pty.cols, rows=pty.rows) if isinstance(pty, model.PtySize) else None
    with checked():
        return task_pb2.TaskSpec(
            shell=command if isinstance(command, str) else None,
            argv=None if isinstance(command, str) else task_pb2.Argv(args=command),
            cwd=cwd,
            env=env,
            timeout=duration_out(timeout),
            output_limit=output_limit,
            spool_bytes=spool_bytes,
            pty=bool(pty),
            pty_size=size,
            stdin=stdin,
            detached=detached,
            reattach_grace=duration_out(reattach_grace),
            secrets=uses,
        )


class checked:
    """Values that fit into no message are the caller's error."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: Optional[BaseException], trace: object) -> None:
        if isinstance(error, (TypeError, ValueError)):
            raise BerthError(f"a value does not fit: {error}") from error


def session_states(states: Iterable[str]) -> Sequence[str]:
    """Words as the wire has them."""
    names = [f"SESSION_STATE_{state.upper()}" for state in states]
    for name in names:
        if name not in session_pb2.SessionState.keys():
            raise BerthError(f"no state of a session: {name[14:].lower()}")
    return names


def session_info(wire: session_pb2.Session) -> model.SessionInfo:
    """A session."""
    reason = _word(session_pb2.EndReason, wire.end_reason, "END_REASON_") if wire.end_reason else None
    limits = wire.limits
    restore = wire.on_worker_loss == session_pb2.ON_WORKER_LOSS_RESTORE
    return model.SessionInfo(
        id=wire.id,
        state=_word(session_pb2.SessionState, wire.state, "SESSION_STATE_"),
        end_reason=reason,
        message=wire.message,
        template=wire.template,
        worker=wire.worker_id or None,
        epoch=wire.epoch,
        backend=wire.backend,
        limits=model.Limits(limits.cpu_millis, limits.memory_bytes, limits.disk_bytes, limits.pids),
        labels=dict(wire.labels),
        priority=wire.priority,
        created_at=time_in(wire, "created_at"),
        ready_at=time_in(wire, "ready_at"),
        ended_at=time_in(wire, "ended_at"),
        expires_at=time_in(wire, "expires_at"),
        idle_timeout=_limit(wire.idle_timeout),
        on_worker_loss="restore" if restore else "end",
        checkpoint_id=wire.checkpoint_id or None,
        checkpointed_at=time_in(wire, "checkpointed_at"),
        recovered_from=wire.recovered_from or None,
        recovered_to=time_in(wire, "recovered_to"),
        parked_at=time_in(wire, "parked_at"),
        tenant=wire.tenant,
        queue_position=wire.queue_position or None,
        egress=model.Egress(preset=wire.egress.preset or "none", allow=tuple(wire.egress.allow)),
    )


def outcome(wire: common_pb2.Outcome) -> model.Outcome:
    """How a task ended."""
    kind = wire.WhichOneof("kind")
    if kind is None:
        raise strange("a task ended without an outcome")
    code = wire.exited if kind == "exited" else None
    return model.Outcome(str(kind), code, wire.signaled if kind == "signaled" else None)


def task_info(wire: task_pb2.Task) -> model.TaskInfo:
    """A task."""
    end = None
    if wire.HasField("end"):
        usage = wire.end.usage
        end = model.TaskEnd(
            outcome=outcome(wire.end.outcome),
            message=wire.end.message,
            ended_at=time_in(wire.end, "ended_at"),
            duration=_duration(wire.end.duration),
            usage=model.Usage(
                cpu_user=_duration(usage.cpu_user),
                cpu_system=_duration(usage.cpu_system),
                peak_memory_bytes=usage.peak_memory_bytes,
                oom_kills=usage.oom_kills,
            ),
        )
    return model.TaskInfo(
        id=wire.id,
        session=wire.session_id,
        state=_word(task_pb2.TaskState, wire.state, "TASK_STATE_"),
        argv=tuple(wire.spec.argv.args),
        shell=wire.spec.shell if wire.spec.WhichOneof("program") == "shell" else None,
        cwd=wire.spec.cwd,
        pid=wire.pid,
        started_at=time_in(wire, "started_at"),
        stdout=model.StreamPosition(wire.stdout.length, wire.stdout.first_kept),
        stderr=model.StreamPosition(wire.stderr.length, wire.stderr.first_kept),
        end=end,
    )


def file_info(wire: file_pb2.FileInfo) -> model.FileInfo:
    """A file."""
    return model.FileInfo(
        path=wire.path,
        type=_word(file_pb2.FileType, wire.type, "FILE_TYPE_"),
        size=wire.size,
        mode=wire.mode,
        uid=wire.uid,
        gid=wire.gid,
        modified_at=time_in(wire, "modified_at"),
        symlink_target=wire.symlink_target or None,
        path_bytes=wire.path_bytes or None,
    )


def search_match(wire: file_pb2.SearchMatch) -> model.SearchMatch:
    """A line that was found."""
    return model.SearchMatch(
        path=wire.path,
        line=wire.line,
        text=wire.text,
        before=list(wire.before),
        after=list(wire.after),
        path_bytes=wire.path_bytes or None,
    )


def search_result(found: List[model.SearchMatch], wire: file_pb2.SearchEnd) -> model.SearchResult:
    """What was found, and how it ended."""
    whole = wire.limit == file_pb2.SEARCH_LIMIT_UNSPECIFIED
    limit = None if whole else _word(file_pb2.SearchLimit, wire.limit, "SEARCH_LIMIT_")
    return model.SearchResult(found, wire.files_searched, wire.files_skipped, limit)


def unpacked(wire: file_pb2.UnpackResponse) -> model.Unpacked:
    """What was in an archive."""
    return model.Unpacked(wire.files, wire.directories, wire.links, wire.bytes)


def file_change(wire: file_pb2.FileChange) -> model.FileChange:
    """A change."""
    return model.FileChange(
        kind=_word(file_pb2.ChangeKind, wire.kind, "CHANGE_KIND_"),
        path=wire.path,
        new_path=wire.new_path or None,
        directory=wire.directory,
        entry=file_info(wire.entry) if wire.HasField("entry") else None,
        path_bytes=wire.path_bytes or None,
        new_path_bytes=wire.new_path_bytes or None,
    )


def overflow() -> model.FileChange:
    """Changes were lost."""
    return model.FileChange("overflow", "", None, False, None, None, None)


def context_info(wire: interpreter_pb2.InterpreterContext) -> model.ContextInfo:
    """An interpreter."""
    return model.ContextInfo(
        id=wire.id,
        state=_word(interpreter_pb2.ContextState, wire.state, "CONTEXT_STATE_"),
        kernel=_word(interpreter_pb2.Kernel, wire.kernel, "KERNEL_"),
        version=wire.version,
        cwd=wire.cwd,
        created_at=time_in(wire, "created_at"),
        executions=wire.executions,
        message=wire.message,
    )


def _bundle(wire: interpreter_pb2.MimeBundle) -> model.Bundle:
    return model.Bundle({form.type: form.data for form in wire.data}, list(wire.left_out))


def execution(events: List[interpreter_pb2.ExecuteEvent]) -> model.Execution:
    """What came of an execution, from its beginning to its end."""
    started, ended = events[0].started, events[-1].ended
    of = {kind: [event for event in events if event.HasField(kind)] for kind in ("result", "error", "display")}
    error = of["error"][-1].error if of["error"] else None
    return model.Execution(
        number=started.execution,
        kernel=_word(interpreter_pb2.Kernel, started.kernel, "KERNEL_"),
        outcome=_word(interpreter_pb2.ExecutionOutcome, ended.outcome, "EXECUTION_OUTCOME_"),
        message=ended.message,
        stdout=b"".join(event.stdout.data for event in events if event.HasField("stdout")),
        stderr=b"".join(event.stderr.data for event in events if event.HasField("stderr")),
        result=_bundle(of["result"][-1].result) if of["result"] else None,
        displays=[_bundle(event.display) for event in of["display"]],
        error=None if error is None else model.ExecutionError(error.name, error.value, error.traceback),
        duration=_duration(ended.duration),
        output_lost=ended.output_lost,
    )


def checkpoint_info(wire: checkpoint_pb2.Checkpoint) -> model.CheckpointInfo:
    """A checkpoint."""
    return model.CheckpointInfo(
        id=wire.id,
        session=wire.session_id,
        created_at=time_in(wire, "created_at"),
        template=wire.template,
        labels=dict(wire.labels),
        note=wire.note,
        cause=_word(checkpoint_pb2.CheckpointCause, wire.cause, "CHECKPOINT_CAUSE_"),
        entries=wire.entries,
        content_bytes=wire.content_bytes,
        stored_bytes=wire.stored_bytes,
        frozen_for=_duration(wire.frozen_for),
        skipped=wire.skipped,
        expires_at=time_in(wire, "expires_at"),
    )
