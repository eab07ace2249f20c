import datetime

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

class Kernel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KERNEL_UNSPECIFIED: _ClassVar[Kernel]
    KERNEL_IPYKERNEL: _ClassVar[Kernel]
    KERNEL_BUILTIN: _ClassVar[Kernel]

class ContextState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONTEXT_STATE_UNSPECIFIED: _ClassVar[ContextState]
    CONTEXT_STATE_STARTING: _ClassVar[ContextState]
    CONTEXT_STATE_IDLE: _ClassVar[ContextState]
    CONTEXT_STATE_BUSY: _ClassVar[ContextState]
    CONTEXT_STATE_DEAD: _ClassVar[ContextState]

class ExecutionOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXECUTION_OUTCOME_UNSPECIFIED: _ClassVar[ExecutionOutcome]
    EXECUTION_OUTCOME_OK: _ClassVar[ExecutionOutcome]
    EXECUTION_OUTCOME_ERROR: _ClassVar[ExecutionOutcome]
    EXECUTION_OUTCOME_INTERRUPTED: _ClassVar[ExecutionOutcome]
    EXECUTION_OUTCOME_TIMED_OUT: _ClassVar[ExecutionOutcome]
    EXECUTION_OUTCOME_DIED: _ClassVar[ExecutionOutcome]
    EXECUTION_OUTCOME_CANCELLED: _ClassVar[ExecutionOutcome]
    EXECUTION_OUTCOME_SESSION_ENDED: _ClassVar[ExecutionOutcome]
KERNEL_UNSPECIFIED: Kernel
KERNEL_IPYKERNEL: Kernel
KERNEL_BUILTIN: Kernel
CONTEXT_STATE_UNSPECIFIED: ContextState
CONTEXT_STATE_STARTING: ContextState
CONTEXT_STATE_IDLE: ContextState
CONTEXT_STATE_BUSY: ContextState
CONTEXT_STATE_DEAD: ContextState
EXECUTION_OUTCOME_UNSPECIFIED: ExecutionOutcome
EXECUTION_OUTCOME_OK: ExecutionOutcome
EXECUTION_OUTCOME_ERROR: ExecutionOutcome
EXECUTION_OUTCOME_INTERRUPTED: ExecutionOutcome
EXECUTION_OUTCOME_TIMED_OUT: ExecutionOutcome
EXECUTION_OUTCOME_DIED: ExecutionOutcome
EXECUTION_OUTCOME_CANCELLED: ExecutionOutcome
EXECUTION_OUTCOME_SESSION_ENDED: ExecutionOutcome

class InterpreterContext(_message.Message):
    __slots__ = ("id", "session_id", "language", "cwd", "state", "kernel", "version", "pid", "created_at", "executions", "waiting", "message")
    ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    CWD_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    id: str
    session_id: str
    language: str
    cwd: str
    state: ContextState
    kernel: Kernel
    version: str
    pid: int
    created_at: _timestamp_pb2.Timestamp
    executions: int
    waiting: int
    message: str
    def __init__(self, id: _Optional[str] = ..., session_id: _Optional[str] = ..., language: _Optional[str] = ..., cwd: _Optional[str] = ..., state: _Optional[_Union[ContextState, str]] = ..., kernel: _Optional[_Union[Kernel, str]] = ..., version: _Optional[str] = ..., pid: _Optional[int] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., executions: _Optional[int] = ..., waiting: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class CreateContextRequest(_message.Message):
    __slots__ = ("session_id", "language", "cwd", "env", "kernel", "executable", "request_id")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    CWD_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    EXECUTABLE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    language: str
    cwd: str
    env: _containers.ScalarMap[str, str]
    kernel: Kernel
    executable: str
    request_id: str
    def __init__(self, session_id: _Optional[str] = ..., language: _Optional[str] = ..., cwd: _Optional[str] = ..., env: _Optional[_Mapping[str, str]] = ..., kernel: _Optional[_Union[Kernel, str]] = ..., executable: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ListContextsRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class ListContextsResponse(_message.Message):
    __slots__ = ("contexts",)
    CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    contexts: _containers.RepeatedCompositeFieldContainer[InterpreterContext]
    def __init__(self, contexts: _Optional[_Iterable[_Union[InterpreterContext, _Mapping]]] = ...) -> None: ...

class ExecuteRequest(_message.Message):
    __slots__ = ("session_id", "context_id", "code", "timeout", "output_limit", "request_id", "env")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_LIMIT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    context_id: str
    code: str
    timeout: _duration_pb2.Duration
    output_limit: int
    request_id: str
    env: _containers.ScalarMap[str, str]
    def __init__(self, session_id: _Optional[str] = ..., context_id: _Optional[str] = ..., code: _Optional[str] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., output_limit: _Optional[int] = ..., request_id: _Optional[str] = ..., env: _Optional[_Mapping[str, str]] = ...) -> None: ...

class WatchExecutionRequest(_message.Message):
    __slots__ = ("session_id", "context_id", "execution")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    context_id: str
    execution: int
    def __init__(self, session_id: _Optional[str] = ..., context_id: _Optional[str] = ..., execution: _Optional[int] = ...) -> None: ...

class ExecuteEvent(_message.Message):
    __slots__ = ("started", "stdout", "stderr", "display", "result", "error", "ended", "keepalive")
    class Keepalive(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    STARTED_FIELD_NUMBER: _ClassVar[int]
    STDOUT_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    KEEPALIVE_FIELD_NUMBER: _ClassVar[int]
    started: ExecutionStarted
    stdout: _task_pb2.OutputChunk
    stderr: _task_pb2.OutputChunk
    display: MimeBundle
    result: MimeBundle
    error: ExecutionError
    ended: ExecutionEnded
    keepalive: ExecuteEvent.Keepalive
    def __init__(self, started: _Optional[_Union[ExecutionStarted, _Mapping]] = ..., stdout: _Optional[_Union[_task_pb2.OutputChunk, _Mapping]] = ..., stderr: _Optional[_Union[_task_pb2.OutputChunk, _Mapping]] = ..., display: _Optional[_Union[MimeBundle, _Mapping]] = ..., result: _Optional[_Union[MimeBundle, _Mapping]] = ..., error: _Optional[_Union[ExecutionError, _Mapping]] = ..., ended: _Optional[_Union[ExecutionEnded, _Mapping]] = ..., keepalive: _Optional[_Union[ExecuteEvent.Keepalive, _Mapping]] = ...) -> None: ...

class ExecutionStarted(_message.Message):
    __slots__ = ("execution", "context_id", "kernel", "ahead")
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    execution: int
    context_id: str
    kernel: Kernel
    ahead: int
    def __init__(self, execution: _Optional[int] = ..., context_id: _Optional[str] = ..., kernel: _Optional[_Union[Kernel, str]] = ..., ahead: _Optional[int] = ...) -> None: ...

class MimeBundle(_message.Message):
    __slots__ = ("data", "left_out", "display_id", "update")
    DATA_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_ID_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    data: _containers.RepeatedCompositeFieldContainer[MimeData]
    left_out: _containers.RepeatedScalarFieldContainer[str]
    display_id: str
    update: bool
    def __init__(self, data: _Optional[_Iterable[_Union[MimeData, _Mapping]]] = ..., left_out: _Optional[_Iterable[str]] = ..., display_id: _Optional[str] = ..., update: bool = ...) -> None: ...

class MimeData(_message.Message):
    __slots__ = ("type", "data")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    type: str
    data: bytes
    def __init__(self, type: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class ExecutionError(_message.Message):
    __slots__ = ("name", "value", "traceback")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    traceback: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ..., traceback: _Optional[str] = ...) -> None: ...

class ExecutionEnded(_message.Message):
    __slots__ = ("outcome", "message", "duration", "output_lost")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_LOST_FIELD_NUMBER: _ClassVar[int]
    outcome: ExecutionOutcome
    message: str
    duration: _duration_pb2.Duration
    output_lost: int
    def __init__(self, outcome: _Optional[_Union[ExecutionOutcome, str]] = ..., message: _Optional[str] = ..., duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., output_lost: _Optional[int] = ...) -> None: ...

class InterruptContextRequest(_message.Message):
    __slots__ = ("session_id", "context_id", "execution")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    context_id: str
    execution: int
    def __init__(self, session_id: _Optional[str] = ..., context_id: _Optional[str] = ..., execution: _Optional[int] = ...) -> None: ...

class InterruptContextResponse(_message.Message):
    __slots__ = ("execution",)
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    execution: int
    def __init__(self, execution: _Optional[int] = ...) -> None: ...

class RestartContextRequest(_message.Message):
    __slots__ = ("session_id", "context_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    context_id: str
    def __init__(self, session_id: _Optional[str] = ..., context_id: _Optional[str] = ...) -> None: ...

class DeleteContextRequest(_message.Message):
    __slots__ = ("session_id", "context_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    context_id: str
    def __init__(self, session_id: _Optional[str] = ..., context_id: _Optional[str] = ...) -> None: ...

class DeleteContextResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
