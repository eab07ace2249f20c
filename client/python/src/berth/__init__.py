"""The Python client of Berth: sandboxes for agents, on machines you own.

    import berth

    with berth.Client.connect() as client, client.session(ttl=600) as session:
        output = session.run(["python3", "-c", "print(6 * 7)"])
        assert output.stdout == b"42\\n"

`berth.aio` has the same names for asyncio. What is kept for you:

- Every unary call has a deadline. A call that is safe to repeat is repeated, briefly, when the connection breaks; one that is
  not gets an id by which the server knows it. A task is so started at most once.
- A stream of output that breaks is resumed at the byte where it broke: no byte is lost and none comes twice.
- An upload that fails halfway leaves the file as it was.
- A `BerthError` says why (a code and a reason for programs) and what to do (a hint).
"""

from ._sync._client import Client
from ._sync._files import Changes, Files
from ._sync._interpreter import Context
from ._sync._ports import PortForward, PortStream
from ._sync._session import Session, SessionContext
from ._sync._stream import TaskStream
from ._sync._task import Task
from .errors import BerthError, Reason
from .model import (
    Bundle,
    CheckpointInfo,
    CheckpointPolicy,
    ContextInfo,
    Egress,
    Ended,
    Execution,
    ExecutionError,
    FileChange,
    FileInfo,
    Limits,
    Lost,
    Outcome,
    Output,
    PtySize,
    SearchMatch,
    SearchResult,
    SessionInfo,
    Stderr,
    Stdout,
    StreamPosition,
    TaskEnd,
    TaskEvent,
    TaskFailed,
    TaskInfo,
    Unpacked,
    Usage,
)
from .records import (
    ArtifactInfo,
    ArtifactList,
    AuditCheck,
    AuditRecord,
    NotKept,
    SecretInfo,
    SessionUsage,
)

__all__ = [
    "ArtifactInfo",
    "ArtifactList",
    "AuditCheck",
    "AuditRecord",
    "BerthError",
    "Bundle",
    "Changes",
    "CheckpointInfo",
    "CheckpointPolicy",
    "Client",
    "Context",
    "ContextInfo",
    "Egress",
    "Ended",
    "Execution",
    "ExecutionError",
    "FileChange",
    "FileInfo",
    "Files",
    "Limits",
    "Lost",
    "NotKept",
    "Outcome",
    "Output",
    "PortForward",
    "PortStream",
    "PtySize",
    "Reason",
    "SearchMatch",
    "SearchResult",
    "SecretInfo",
    "Session",
    "SessionContext",
    "SessionInfo",
    "SessionUsage",
    "Stderr",
    "Stdout",
    "StreamPosition",
    "Task",
    "TaskEnd",
    "TaskEvent",
    "TaskFailed",
    "TaskInfo",
    "TaskStream",
    "Unpacked",
    "Usage",
]
