import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Limits(_message.Message):
    __slots__ = ("cpu_millis", "memory_bytes", "disk_bytes", "pids")
    CPU_MILLIS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    cpu_millis: int
    memory_bytes: int
    disk_bytes: int
    pids: int
    def __init__(self, cpu_millis: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., pids: _Optional[int] = ...) -> None: ...

class TaskDefaults(_message.Message):
    __slots__ = ("timeout", "pty_size", "max_concurrent")
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    PTY_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENT_FIELD_NUMBER: _ClassVar[int]
    timeout: _duration_pb2.Duration
    pty_size: PtySize
    max_concurrent: int
    def __init__(self, timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., pty_size: _Optional[_Union[PtySize, _Mapping]] = ..., max_concurrent: _Optional[int] = ...) -> None: ...

class PtySize(_message.Message):
    __slots__ = ("cols", "rows")
    COLS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    cols: int
    rows: int
    def __init__(self, cols: _Optional[int] = ..., rows: _Optional[int] = ...) -> None: ...

class Egress(_message.Message):
    __slots__ = ("preset", "allow")
    PRESET_FIELD_NUMBER: _ClassVar[int]
    ALLOW_FIELD_NUMBER: _ClassVar[int]
    preset: str
    allow: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, preset: _Optional[str] = ..., allow: _Optional[_Iterable[str]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("exited", "signaled", "timed_out", "out_of_memory", "output_limit", "cancelled", "session_ended", "worker_lost", "sandbox_failed")
    class Empty(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    EXITED_FIELD_NUMBER: _ClassVar[int]
    SIGNALED_FIELD_NUMBER: _ClassVar[int]
    TIMED_OUT_FIELD_NUMBER: _ClassVar[int]
    OUT_OF_MEMORY_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_LIMIT_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    SESSION_ENDED_FIELD_NUMBER: _ClassVar[int]
    WORKER_LOST_FIELD_NUMBER: _ClassVar[int]
    SANDBOX_FAILED_FIELD_NUMBER: _ClassVar[int]
    exited: int
    signaled: int
    timed_out: Outcome.Empty
    out_of_memory: Outcome.Empty
    output_limit: Outcome.Empty
    cancelled: Outcome.Empty
    session_ended: Outcome.Empty
    worker_lost: Outcome.Empty
    sandbox_failed: Outcome.Empty
    def __init__(self, exited: _Optional[int] = ..., signaled: _Optional[int] = ..., timed_out: _Optional[_Union[Outcome.Empty, _Mapping]] = ..., out_of_memory: _Optional[_Union[Outcome.Empty, _Mapping]] = ..., output_limit: _Optional[_Union[Outcome.Empty, _Mapping]] = ..., cancelled: _Optional[_Union[Outcome.Empty, _Mapping]] = ..., session_ended: _Optional[_Union[Outcome.Empty, _Mapping]] = ..., worker_lost: _Optional[_Union[Outcome.Empty, _Mapping]] = ..., sandbox_failed: _Optional[_Union[Outcome.Empty, _Mapping]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("cpu_user", "cpu_system", "peak_memory_bytes", "oom_kills")
    CPU_USER_FIELD_NUMBER: _ClassVar[int]
    CPU_SYSTEM_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    OOM_KILLS_FIELD_NUMBER: _ClassVar[int]
    cpu_user: _duration_pb2.Duration
    cpu_system: _duration_pb2.Duration
    peak_memory_bytes: int
    oom_kills: int
    def __init__(self, cpu_user: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., cpu_system: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., peak_memory_bytes: _Optional[int] = ..., oom_kills: _Optional[int] = ...) -> None: ...
