import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FileType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FILE_TYPE_UNSPECIFIED: _ClassVar[FileType]
    FILE_TYPE_FILE: _ClassVar[FileType]
    FILE_TYPE_DIRECTORY: _ClassVar[FileType]
    FILE_TYPE_SYMLINK: _ClassVar[FileType]
    FILE_TYPE_OTHER: _ClassVar[FileType]

class ChangeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHANGE_KIND_UNSPECIFIED: _ClassVar[ChangeKind]
    CHANGE_KIND_CREATED: _ClassVar[ChangeKind]
    CHANGE_KIND_WRITTEN: _ClassVar[ChangeKind]
    CHANGE_KIND_REMOVED: _ClassVar[ChangeKind]
    CHANGE_KIND_RENAMED: _ClassVar[ChangeKind]
    CHANGE_KIND_CHMOD: _ClassVar[ChangeKind]

class SearchLimit(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEARCH_LIMIT_UNSPECIFIED: _ClassVar[SearchLimit]
    SEARCH_LIMIT_MATCHES: _ClassVar[SearchLimit]
    SEARCH_LIMIT_TIME: _ClassVar[SearchLimit]
FILE_TYPE_UNSPECIFIED: FileType
FILE_TYPE_FILE: FileType
FILE_TYPE_DIRECTORY: FileType
FILE_TYPE_SYMLINK: FileType
FILE_TYPE_OTHER: FileType
CHANGE_KIND_UNSPECIFIED: ChangeKind
CHANGE_KIND_CREATED: ChangeKind
CHANGE_KIND_WRITTEN: ChangeKind
CHANGE_KIND_REMOVED: ChangeKind
CHANGE_KIND_RENAMED: ChangeKind
CHANGE_KIND_CHMOD: ChangeKind
SEARCH_LIMIT_UNSPECIFIED: SearchLimit
SEARCH_LIMIT_MATCHES: SearchLimit
SEARCH_LIMIT_TIME: SearchLimit

class FileInfo(_message.Message):
    __slots__ = ("path", "type", "size", "mode", "uid", "gid", "modified_at", "symlink_target", "path_bytes")
    PATH_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    MODIFIED_AT_FIELD_NUMBER: _ClassVar[int]
    SYMLINK_TARGET_FIELD_NUMBER: _ClassVar[int]
    PATH_BYTES_FIELD_NUMBER: _ClassVar[int]
    path: str
    type: FileType
    size: int
    mode: int
    uid: int
    gid: int
    modified_at: _timestamp_pb2.Timestamp
    symlink_target: str
    path_bytes: bytes
    def __init__(self, path: _Optional[str] = ..., type: _Optional[_Union[FileType, str]] = ..., size: _Optional[int] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., modified_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., symlink_target: _Optional[str] = ..., path_bytes: _Optional[bytes] = ...) -> None: ...

class ReadRequest(_message.Message):
    __slots__ = ("session_id", "path", "offset", "length", "no_links")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    NO_LINKS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    path: str
    offset: int
    length: int
    no_links: bool
    def __init__(self, session_id: _Optional[str] = ..., path: _Optional[str] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ..., no_links: bool = ...) -> None: ...

class ReadResponse(_message.Message):
    __slots__ = ("info", "data")
    INFO_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    info: FileInfo
    data: bytes
    def __init__(self, info: _Optional[_Union[FileInfo, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class WriteRequest(_message.Message):
    __slots__ = ("header", "data", "end")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    header: WriteHeader
    data: bytes
    end: WriteEnd
    def __init__(self, header: _Optional[_Union[WriteHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., end: _Optional[_Union[WriteEnd, _Mapping]] = ...) -> None: ...

class WriteEnd(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WriteHeader(_message.Message):
    __slots__ = ("session_id", "path", "mode", "make_parents")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    MAKE_PARENTS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    path: str
    mode: int
    make_parents: bool
    def __init__(self, session_id: _Optional[str] = ..., path: _Optional[str] = ..., mode: _Optional[int] = ..., make_parents: bool = ...) -> None: ...

class StatRequest(_message.Message):
    __slots__ = ("session_id", "path", "follow")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    path: str
    follow: bool
    def __init__(self, session_id: _Optional[str] = ..., path: _Optional[str] = ..., follow: bool = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("session_id", "path", "depth", "page_size", "page_token", "no_links")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NO_LINKS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    path: str
    depth: int
    page_size: int
    page_token: str
    no_links: bool
    def __init__(self, session_id: _Optional[str] = ..., path: _Optional[str] = ..., depth: _Optional[int] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., no_links: bool = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("entries", "next_page_token")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[FileInfo]
    next_page_token: str
    def __init__(self, entries: _Optional[_Iterable[_Union[FileInfo, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class MakeDirRequest(_message.Message):
    __slots__ = ("session_id", "path", "parents", "mode")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    path: str
    parents: bool
    mode: int
    def __init__(self, session_id: _Optional[str] = ..., path: _Optional[str] = ..., parents: bool = ..., mode: _Optional[int] = ...) -> None: ...

class MoveRequest(_message.Message):
    __slots__ = ("session_id", "source", "destination", "overwrite")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    OVERWRITE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    source: str
    destination: str
    overwrite: bool
    def __init__(self, session_id: _Optional[str] = ..., source: _Optional[str] = ..., destination: _Optional[str] = ..., overwrite: bool = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("session_id", "path", "recursive")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    RECURSIVE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    path: str
    recursive: bool
    def __init__(self, session_id: _Optional[str] = ..., path: _Optional[str] = ..., recursive: bool = ...) -> None: ...

class RemoveResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("session_id", "path", "recursive", "include_entry")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    RECURSIVE_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_ENTRY_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    path: str
    recursive: bool
    include_entry: bool
    def __init__(self, session_id: _Optional[str] = ..., path: _Optional[str] = ..., recursive: bool = ..., include_entry: bool = ...) -> None: ...

class WatchEvent(_message.Message):
    __slots__ = ("ready", "change", "overflow", "keepalive", "ended")
    class Ready(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    class Overflow(_message.Message):
        __slots__ = ("unwatched",)
        UNWATCHED_FIELD_NUMBER: _ClassVar[int]
        unwatched: bool
        def __init__(self, unwatched: bool = ...) -> None: ...
    class Keepalive(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    class Ended(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    READY_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    OVERFLOW_FIELD_NUMBER: _ClassVar[int]
    KEEPALIVE_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    ready: WatchEvent.Ready
    change: FileChange
    overflow: WatchEvent.Overflow
    keepalive: WatchEvent.Keepalive
    ended: WatchEvent.Ended
    def __init__(self, ready: _Optional[_Union[WatchEvent.Ready, _Mapping]] = ..., change: _Optional[_Union[FileChange, _Mapping]] = ..., overflow: _Optional[_Union[WatchEvent.Overflow, _Mapping]] = ..., keepalive: _Optional[_Union[WatchEvent.Keepalive, _Mapping]] = ..., ended: _Optional[_Union[WatchEvent.Ended, _Mapping]] = ...) -> None: ...

class FileChange(_message.Message):
    __slots__ = ("kind", "path", "path_bytes", "new_path", "new_path_bytes", "directory", "entry")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PATH_BYTES_FIELD_NUMBER: _ClassVar[int]
    NEW_PATH_FIELD_NUMBER: _ClassVar[int]
    NEW_PATH_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    kind: ChangeKind
    path: str
    path_bytes: bytes
    new_path: str
    new_path_bytes: bytes
    directory: bool
    entry: FileInfo
    def __init__(self, kind: _Optional[_Union[ChangeKind, str]] = ..., path: _Optional[str] = ..., path_bytes: _Optional[bytes] = ..., new_path: _Optional[str] = ..., new_path_bytes: _Optional[bytes] = ..., directory: bool = ..., entry: _Optional[_Union[FileInfo, _Mapping]] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("session_id", "path", "pattern", "literal", "ignore_case", "globs", "exclude", "context", "max_matches", "max_file_bytes", "time_limit")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    LITERAL_FIELD_NUMBER: _ClassVar[int]
    IGNORE_CASE_FIELD_NUMBER: _ClassVar[int]
    GLOBS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    MAX_MATCHES_FIELD_NUMBER: _ClassVar[int]
    MAX_FILE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TIME_LIMIT_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    path: str
    pattern: str
    literal: bool
    ignore_case: bool
    globs: _containers.RepeatedScalarFieldContainer[str]
    exclude: _containers.RepeatedScalarFieldContainer[str]
    context: int
    max_matches: int
    max_file_bytes: int
    time_limit: _duration_pb2.Duration
    def __init__(self, session_id: _Optional[str] = ..., path: _Optional[str] = ..., pattern: _Optional[str] = ..., literal: bool = ..., ignore_case: bool = ..., globs: _Optional[_Iterable[str]] = ..., exclude: _Optional[_Iterable[str]] = ..., context: _Optional[int] = ..., max_matches: _Optional[int] = ..., max_file_bytes: _Optional[int] = ..., time_limit: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SearchEvent(_message.Message):
    __slots__ = ("match", "keepalive", "end")
    class Keepalive(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    MATCH_FIELD_NUMBER: _ClassVar[int]
    KEEPALIVE_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    match: SearchMatch
    keepalive: SearchEvent.Keepalive
    end: SearchEnd
    def __init__(self, match: _Optional[_Union[SearchMatch, _Mapping]] = ..., keepalive: _Optional[_Union[SearchEvent.Keepalive, _Mapping]] = ..., end: _Optional[_Union[SearchEnd, _Mapping]] = ...) -> None: ...

class SearchMatch(_message.Message):
    __slots__ = ("path", "path_bytes", "line", "text", "before", "after")
    PATH_FIELD_NUMBER: _ClassVar[int]
    PATH_BYTES_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    path: str
    path_bytes: bytes
    line: int
    text: str
    before: _containers.RepeatedScalarFieldContainer[str]
    after: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, path: _Optional[str] = ..., path_bytes: _Optional[bytes] = ..., line: _Optional[int] = ..., text: _Optional[str] = ..., before: _Optional[_Iterable[str]] = ..., after: _Optional[_Iterable[str]] = ...) -> None: ...

class SearchEnd(_message.Message):
    __slots__ = ("files_searched", "files_skipped", "limit")
    FILES_SEARCHED_FIELD_NUMBER: _ClassVar[int]
    FILES_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    files_searched: int
    files_skipped: int
    limit: SearchLimit
    def __init__(self, files_searched: _Optional[int] = ..., files_skipped: _Optional[int] = ..., limit: _Optional[_Union[SearchLimit, str]] = ...) -> None: ...

class PackRequest(_message.Message):
    __slots__ = ("session_id", "path", "prefix", "exclude", "max_bytes")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    path: str
    prefix: str
    exclude: _containers.RepeatedScalarFieldContainer[str]
    max_bytes: int
    def __init__(self, session_id: _Optional[str] = ..., path: _Optional[str] = ..., prefix: _Optional[str] = ..., exclude: _Optional[_Iterable[str]] = ..., max_bytes: _Optional[int] = ...) -> None: ...

class PackResponse(_message.Message):
    __slots__ = ("data", "end")
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    end: PackEnd
    def __init__(self, data: _Optional[bytes] = ..., end: _Optional[_Union[PackEnd, _Mapping]] = ...) -> None: ...

class PackEnd(_message.Message):
    __slots__ = ("files", "directories", "links", "bytes", "skipped", "skipped_paths")
    FILES_FIELD_NUMBER: _ClassVar[int]
    DIRECTORIES_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_PATHS_FIELD_NUMBER: _ClassVar[int]
    files: int
    directories: int
    links: int
    bytes: int
    skipped: int
    skipped_paths: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, files: _Optional[int] = ..., directories: _Optional[int] = ..., links: _Optional[int] = ..., bytes: _Optional[int] = ..., skipped: _Optional[int] = ..., skipped_paths: _Optional[_Iterable[str]] = ...) -> None: ...

class UnpackRequest(_message.Message):
    __slots__ = ("header", "data", "end")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    header: UnpackHeader
    data: bytes
    end: UnpackEnd
    def __init__(self, header: _Optional[_Union[UnpackHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., end: _Optional[_Union[UnpackEnd, _Mapping]] = ...) -> None: ...

class UnpackHeader(_message.Message):
    __slots__ = ("session_id", "path", "make_parents")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MAKE_PARENTS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    path: str
    make_parents: bool
    def __init__(self, session_id: _Optional[str] = ..., path: _Optional[str] = ..., make_parents: bool = ...) -> None: ...

class UnpackEnd(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UnpackResponse(_message.Message):
    __slots__ = ("files", "directories", "links", "bytes")
    FILES_FIELD_NUMBER: _ClassVar[int]
    DIRECTORIES_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    files: int
    directories: int
    links: int
    bytes: int
    def __init__(self, files: _Optional[int] = ..., directories: _Optional[int] = ..., links: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...
