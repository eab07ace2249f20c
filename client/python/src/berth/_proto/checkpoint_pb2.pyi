import datetime

from berth._proto import session_pb2 as _session_pb2
from berth._proto import task_pb2 as _task_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CheckpointCause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHECKPOINT_CAUSE_UNSPECIFIED: _ClassVar[CheckpointCause]
    CHECKPOINT_CAUSE_REQUESTED: _ClassVar[CheckpointCause]
    CHECKPOINT_CAUSE_INTERVAL: _ClassVar[CheckpointCause]
    CHECKPOINT_CAUSE_DRAIN: _ClassVar[CheckpointCause]
    CHECKPOINT_CAUSE_DELETE: _ClassVar[CheckpointCause]
    CHECKPOINT_CAUSE_PARKED: _ClassVar[CheckpointCause]

class ArchiveRoot(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ARCHIVE_ROOT_UNSPECIFIED: _ClassVar[ArchiveRoot]
    ARCHIVE_ROOT_WORKSPACE: _ClassVar[ArchiveRoot]
    ARCHIVE_ROOT_HOME: _ClassVar[ArchiveRoot]

class ArchiveKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ARCHIVE_KIND_UNSPECIFIED: _ClassVar[ArchiveKind]
    ARCHIVE_KIND_FILE: _ClassVar[ArchiveKind]
    ARCHIVE_KIND_DIRECTORY: _ClassVar[ArchiveKind]
    ARCHIVE_KIND_SYMLINK: _ClassVar[ArchiveKind]
    ARCHIVE_KIND_HARD_LINK: _ClassVar[ArchiveKind]
CHECKPOINT_CAUSE_UNSPECIFIED: CheckpointCause
CHECKPOINT_CAUSE_REQUESTED: CheckpointCause
CHECKPOINT_CAUSE_INTERVAL: CheckpointCause
CHECKPOINT_CAUSE_DRAIN: CheckpointCause
CHECKPOINT_CAUSE_DELETE: CheckpointCause
CHECKPOINT_CAUSE_PARKED: CheckpointCause
ARCHIVE_ROOT_UNSPECIFIED: ArchiveRoot
ARCHIVE_ROOT_WORKSPACE: ArchiveRoot
ARCHIVE_ROOT_HOME: ArchiveRoot
ARCHIVE_KIND_UNSPECIFIED: ArchiveKind
ARCHIVE_KIND_FILE: ArchiveKind
ARCHIVE_KIND_DIRECTORY: ArchiveKind
ARCHIVE_KIND_SYMLINK: ArchiveKind
ARCHIVE_KIND_HARD_LINK: ArchiveKind

class Checkpoint(_message.Message):
    __slots__ = ("id", "session_id", "created_at", "template", "labels", "note", "cause", "entries", "content_bytes", "stored_bytes", "frozen_for", "skipped", "expires_at", "tenant")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    CONTENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FROZEN_FOR_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    id: str
    session_id: str
    created_at: _timestamp_pb2.Timestamp
    template: str
    labels: _containers.ScalarMap[str, str]
    note: str
    cause: CheckpointCause
    entries: int
    content_bytes: int
    stored_bytes: int
    frozen_for: _duration_pb2.Duration
    skipped: int
    expires_at: _timestamp_pb2.Timestamp
    tenant: str
    def __init__(self, id: _Optional[str] = ..., session_id: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., template: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., note: _Optional[str] = ..., cause: _Optional[_Union[CheckpointCause, str]] = ..., entries: _Optional[int] = ..., content_bytes: _Optional[int] = ..., stored_bytes: _Optional[int] = ..., frozen_for: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., skipped: _Optional[int] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tenant: _Optional[str] = ...) -> None: ...

class CheckpointSessionRequest(_message.Message):
    __slots__ = ("session_id", "note", "keep_for")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    KEEP_FOR_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    note: str
    keep_for: _duration_pb2.Duration
    def __init__(self, session_id: _Optional[str] = ..., note: _Optional[str] = ..., keep_for: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ListCheckpointsRequest(_message.Message):
    __slots__ = ("session_id", "page_size", "page_token")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    page_size: int
    page_token: str
    def __init__(self, session_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListCheckpointsResponse(_message.Message):
    __slots__ = ("checkpoints", "next_page_token")
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    checkpoints: _containers.RepeatedCompositeFieldContainer[Checkpoint]
    next_page_token: str
    def __init__(self, checkpoints: _Optional[_Iterable[_Union[Checkpoint, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetCheckpointRequest(_message.Message):
    __slots__ = ("checkpoint_id",)
    CHECKPOINT_ID_FIELD_NUMBER: _ClassVar[int]
    checkpoint_id: str
    def __init__(self, checkpoint_id: _Optional[str] = ...) -> None: ...

class DeleteCheckpointRequest(_message.Message):
    __slots__ = ("checkpoint_id",)
    CHECKPOINT_ID_FIELD_NUMBER: _ClassVar[int]
    checkpoint_id: str
    def __init__(self, checkpoint_id: _Optional[str] = ...) -> None: ...

class DeleteCheckpointResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RestoreSessionRequest(_message.Message):
    __slots__ = ("checkpoint_id", "session")
    CHECKPOINT_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    checkpoint_id: str
    session: _session_pb2.CreateSessionRequest
    def __init__(self, checkpoint_id: _Optional[str] = ..., session: _Optional[_Union[_session_pb2.CreateSessionRequest, _Mapping]] = ...) -> None: ...

class ForkSessionRequest(_message.Message):
    __slots__ = ("session_id", "count", "session")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    count: int
    session: _session_pb2.CreateSessionRequest
    def __init__(self, session_id: _Optional[str] = ..., count: _Optional[int] = ..., session: _Optional[_Union[_session_pb2.CreateSessionRequest, _Mapping]] = ...) -> None: ...

class ForkSessionResponse(_message.Message):
    __slots__ = ("sessions", "checkpoint")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[_session_pb2.Session]
    checkpoint: Checkpoint
    def __init__(self, sessions: _Optional[_Iterable[_Union[_session_pb2.Session, _Mapping]]] = ..., checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ...) -> None: ...

class FindMissingRequest(_message.Message):
    __slots__ = ("digests",)
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    digests: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, digests: _Optional[_Iterable[bytes]] = ...) -> None: ...

class FindMissingResponse(_message.Message):
    __slots__ = ("digests",)
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    digests: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, digests: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Blob(_message.Message):
    __slots__ = ("digest", "data")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    data: bytes
    def __init__(self, digest: _Optional[bytes] = ..., data: _Optional[bytes] = ...) -> None: ...

class PutBlobsResponse(_message.Message):
    __slots__ = ("stored_bytes",)
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    stored_bytes: int
    def __init__(self, stored_bytes: _Optional[int] = ...) -> None: ...

class GetBlobsRequest(_message.Message):
    __slots__ = ("digests",)
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    digests: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, digests: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ArchivePart(_message.Message):
    __slots__ = ("entry", "data", "end", "task", "key")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    entry: ArchiveEntry
    data: bytes
    end: ArchiveEnd
    task: KeptTask
    key: KeptKey
    def __init__(self, entry: _Optional[_Union[ArchiveEntry, _Mapping]] = ..., data: _Optional[bytes] = ..., end: _Optional[_Union[ArchiveEnd, _Mapping]] = ..., task: _Optional[_Union[KeptTask, _Mapping]] = ..., key: _Optional[_Union[KeptKey, _Mapping]] = ...) -> None: ...

class ArchiveEntry(_message.Message):
    __slots__ = ("root", "path", "kind", "mode", "mtime_ns", "size", "target")
    ROOT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    root: ArchiveRoot
    path: bytes
    kind: ArchiveKind
    mode: int
    mtime_ns: int
    size: int
    target: bytes
    def __init__(self, root: _Optional[_Union[ArchiveRoot, str]] = ..., path: _Optional[bytes] = ..., kind: _Optional[_Union[ArchiveKind, str]] = ..., mode: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., size: _Optional[int] = ..., target: _Optional[bytes] = ...) -> None: ...

class ArchiveEnd(_message.Message):
    __slots__ = ("skipped", "frozen_for")
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    FROZEN_FOR_FIELD_NUMBER: _ClassVar[int]
    skipped: int
    frozen_for: _duration_pb2.Duration
    def __init__(self, skipped: _Optional[int] = ..., frozen_for: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("version", "entries", "content", "skipped", "tasks", "keys")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    version: int
    entries: _containers.RepeatedCompositeFieldContainer[ArchiveEntry]
    content: _containers.RepeatedCompositeFieldContainer[Piece]
    skipped: int
    tasks: _containers.RepeatedCompositeFieldContainer[KeptTask]
    keys: _containers.RepeatedCompositeFieldContainer[KeptKey]
    def __init__(self, version: _Optional[int] = ..., entries: _Optional[_Iterable[_Union[ArchiveEntry, _Mapping]]] = ..., content: _Optional[_Iterable[_Union[Piece, _Mapping]]] = ..., skipped: _Optional[int] = ..., tasks: _Optional[_Iterable[_Union[KeptTask, _Mapping]]] = ..., keys: _Optional[_Iterable[_Union[KeptKey, _Mapping]]] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("digest", "size")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    size: int
    def __init__(self, digest: _Optional[bytes] = ..., size: _Optional[int] = ...) -> None: ...

class KeptTask(_message.Message):
    __slots__ = ("task", "stdout_tail", "stderr_tail")
    TASK_FIELD_NUMBER: _ClassVar[int]
    STDOUT_TAIL_FIELD_NUMBER: _ClassVar[int]
    STDERR_TAIL_FIELD_NUMBER: _ClassVar[int]
    task: _task_pb2.Task
    stdout_tail: bytes
    stderr_tail: bytes
    def __init__(self, task: _Optional[_Union[_task_pb2.Task, _Mapping]] = ..., stdout_tail: _Optional[bytes] = ..., stderr_tail: _Optional[bytes] = ...) -> None: ...

class KeptKey(_message.Message):
    __slots__ = ("request_id", "body", "task_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    body: bytes
    task_id: str
    def __init__(self, request_id: _Optional[str] = ..., body: _Optional[bytes] = ..., task_id: _Optional[str] = ...) -> None: ...

class ManifestRoot(_message.Message):
    __slots__ = ("manifest",)
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    manifest: _containers.RepeatedCompositeFieldContainer[Piece]
    def __init__(self, manifest: _Optional[_Iterable[_Union[Piece, _Mapping]]] = ...) -> None: ...
