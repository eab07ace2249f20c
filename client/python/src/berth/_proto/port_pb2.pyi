from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DialRequest(_message.Message):
    __slots__ = ("header", "data", "end")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    header: DialHeader
    data: bytes
    end: DialEnd
    def __init__(self, header: _Optional[_Union[DialHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., end: _Optional[_Union[DialEnd, _Mapping]] = ...) -> None: ...

class DialHeader(_message.Message):
    __slots__ = ("session_id", "port")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    port: int
    def __init__(self, session_id: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class DialEnd(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DialResponse(_message.Message):
    __slots__ = ("connected", "data", "end")
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    connected: DialConnected
    data: bytes
    end: DialEnd
    def __init__(self, connected: _Optional[_Union[DialConnected, _Mapping]] = ..., data: _Optional[bytes] = ..., end: _Optional[_Union[DialEnd, _Mapping]] = ...) -> None: ...

class DialConnected(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
