# Made by generate.py of aio/_files.py: don't change it here.
"""Files of a session. Paths are relative to the workspace, or absolute inside the sandbox; the kernel there decides what may
be touched, as the task's user."""

from __future__ import annotations

import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Iterator, Callable, List, Optional, Sequence, Type, Union

from .. import _policy, _wire, model
from .._proto import file_pb2
from ..errors import BerthError, strange
from ._transport import Incoming, Source, pieces

if TYPE_CHECKING:
    from ._client import Client

#: The most that `read` takes into memory, in bytes: a sandbox may hold a file of any size.
READ_LIMIT = 256 << 20


class Files:
    """The files of a session. Every method raises `berth.BerthError`: FILE_NOT_FOUND, FILE_DENIED, FILE_KIND, DISK_FULL
    and others."""

    def __init__(self, client: Client, session_id: str) -> None:
        """Use `Session.files`."""
        self._client = client
        self._id = session_id

    def _ask(self, method: Callable[..., Any], request: Any, policy: _policy.Policy) -> Any:
        request.session_id = self._id
        return self._client._call(policy, method, request)

    def read(self, path: str, *, offset: int = 0, length: int = 0) -> bytes:
        """A file, or `length` bytes of it from `offset`; 0 is to the end. At most 256 MiB: `read_pieces` has no limit."""
        data = bytearray()
        for piece in self.read_pieces(path, offset=offset, length=length):
            data += piece
            if len(data) > READ_LIMIT:
                raise BerthError(f"{path} is too big to be read into memory", hint="use read_pieces")
        return bytes(data)

    def read_text(self, path: str) -> str:
        """A whole file as text. Raises `BerthError` if it is not UTF-8."""
        try:
            return (self.read(path)).decode()
        except UnicodeDecodeError as error:
            raise BerthError(f"{path} is not UTF-8", hint="use read") from error

    def read_pieces(self, path: str, *, offset: int = 0, length: int = 0) -> Iterator[bytes]:
        """The same, piece by piece."""
        request = file_pb2.ReadRequest(session_id=self._id, path=path, offset=offset, length=length)
        stream = self._client._transport.stream(self._client._transport.files.Read, request)
        try:
            first = stream.next()
            if first is None or first.WhichOneof("part") != "info":
                raise strange("a file's content came without its description")
            while True:
                message: Optional[file_pb2.ReadResponse] = stream.next()
                if message is None:
                    return
                yield message.data
        finally:
            stream.cancel()

    def write(
        self, path: str, data: Source, *, mode: Optional[int] = None, make_parents: bool = False
    ) -> model.FileInfo:
        """Writes a file, replacing it in one step at its end: if the source or the connection fails before, it stays as it was.

        data: bytes, a text, or something that gives pieces of bytes.
        mode: permission bits. If left out 0644, or those of the file that is replaced.
        make_parents: make missing parent directories.
        """
        header = file_pb2.WriteHeader(session_id=self._id, path=path, mode=mode, make_parents=make_parents)
        method = self._client._transport.files.Write
        return _wire.file_info(self._client._transport.upload(method, _messages(header, data)))

    def stat(self, path: str, *, follow: bool = False) -> model.FileInfo:
        """What is at a path; of a symbolic link the link itself, or with `follow` what it points to."""
        request = file_pb2.StatRequest(path=path, follow=follow)
        method = self._client._transport.files.Stat
        return _wire.file_info(self._ask(method, request, _policy.repeatable()))

    def exists(self, path: str) -> bool:
        """Whether anything is at a path."""
        try:
            self.stat(path)
        except BerthError as error:
            if error.reason == "FILE_NOT_FOUND":
                return False
            raise
        return True

    def list(self, path: str = ".", *, depth: int = 1) -> List[model.FileInfo]:
        """Entries of a directory down to `depth` levels, each directory before what is in it."""
        request = file_pb2.ListRequest(path=path, depth=depth, page_size=1000)
        method = self._client._transport.files.List
        found: List[model.FileInfo] = []
        while True:
            page: file_pb2.ListResponse = self._ask(method, request, _policy.repeatable(_policy.TREE))
            found += [_wire.file_info(entry) for entry in page.entries]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def mkdir(self, path: str, *, parents: bool = False, mode: Optional[int] = None) -> model.FileInfo:
        """Makes a directory. With `parents` those that are missing too, and it may be there already."""
        request = file_pb2.MakeDirRequest(path=path, parents=parents, mode=mode)
        # Without parents, a second one would find the first's work and fail.
        policy = _policy.repeatable() if parents else _policy.once()
        return _wire.file_info(self._ask(self._client._transport.files.MakeDir, request, policy))

    def move(self, source: str, destination: str, *, overwrite: bool = False) -> model.FileInfo:
        """Moves a file or directory; with `overwrite` over what is there, which is otherwise FILE_EXISTS."""
        request = file_pb2.MoveRequest(source=source, destination=destination, overwrite=overwrite)
        return _wire.file_info(self._ask(self._client._transport.files.Move, request, _policy.once()))

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Removes a file, a link or an empty directory; with `recursive` a directory with all that is in it."""
        request = file_pb2.RemoveRequest(path=path, recursive=recursive)
        self._ask(self._client._transport.files.Remove, request, _policy.once(_policy.TREE))

    def search(
        self,
        pattern: str,
        path: str = ".",
        *,
        literal: bool = False,
        ignore_case: bool = False,
        globs: Sequence[str] = (),
        exclude: Sequence[str] = (),
        context: int = 0,
        max_matches: int = 1000,
        max_file_bytes: int = 4 << 20,
        time_limit: Union[float, datetime.timedelta, None] = None,
    ) -> model.SearchResult:
        """Lines that match a regular expression (of Rust's regex crate: no look-around, no back-references), in a directory
        with all that is below it, or in one file. Links are not followed.

        literal: the pattern is text.
        globs: only files whose path below `path` fits one of these, such as `*.py` or `src/**/*.{ts,tsx}`.
        exclude: neither files that fit one of these, nor what is in directories that do.
        context: lines before and after each match, at most 20.
        max_matches: at most 10000.
        max_file_bytes: larger files are passed over; at most 16 MiB.
        time_limit: at most 60 seconds, and if left out as long.
        """
        request = file_pb2.SearchRequest(
            session_id=self._id,
            path=path,
            pattern=pattern,
            literal=literal,
            ignore_case=ignore_case,
            globs=globs,
            exclude=exclude,
            context=context,
            max_matches=max_matches,
            max_file_bytes=max_file_bytes,
            time_limit=_wire.duration_out(time_limit),
        )
        stream = self._client._transport.stream(self._client._transport.files.Search, request)
        found: List[model.SearchMatch] = []
        try:
            while True:
                event: Optional[file_pb2.SearchEvent] = stream.next()
                if event is None:
                    raise strange("a search ended without a word")
                if event.HasField("end"):
                    return _wire.search_result(found, event.end)
                if event.HasField("match"):
                    found.append(_wire.search_match(event.match))
        finally:
            stream.cancel()

    def pack(
        self, path: str = ".", *, prefix: str = "", exclude: Sequence[str] = (), max_bytes: int = 0
    ) -> Iterator[bytes]:
        """A directory (or one file) as an uncompressed tar archive, piece by piece. What may not be read is left out, and so are
        pipes, sockets and devices. When this ends without an error the archive is whole. It was made by a sandbox: unpack it
        as a stranger's (`tarfile` with `filter="data"`).

        prefix: what names in it begin with. If left out, they are as below `path`.
        exclude: globs of what is left out.
        max_bytes: content in all that is more than this is the error DISK_FULL. 0 is 64 GiB.
        """
        request = file_pb2.PackRequest(
            session_id=self._id, path=path, prefix=prefix, exclude=exclude, max_bytes=max_bytes
        )
        stream = self._client._transport.stream(self._client._transport.files.Pack, request)
        try:
            while True:
                message: Optional[file_pb2.PackResponse] = stream.next()
                if message is None:
                    raise strange("an archive ended without a word")
                if message.HasField("end"):
                    return
                yield message.data
        finally:
            stream.cancel()

    def unpack(self, path: str, data: Source, *, make_parents: bool = False) -> model.Unpacked:
        """Puts what is in an uncompressed tar archive into a directory. Directories are merged, files and links replaced. If it
        is refused on the way (a name that leads elsewhere, a device, a full disk), what came before stays, and the error's
        details say how much that is.

        data: bytes, or something that gives pieces of bytes.
        make_parents: make the directory, and what is missing above it.
        """
        header = file_pb2.UnpackHeader(session_id=self._id, path=path, make_parents=make_parents)
        method = self._client._transport.files.Unpack
        return _wire.unpacked(self._client._transport.upload(method, _archive(header, data)))

    def watch(self, path: str = ".", *, recursive: bool = False, include_entry: bool = False) -> Changes:
        """Watches a directory. When this returns the watch stands: who lists from then on misses nothing.

        recursive: with all directories below it, those to come included.
        include_entry: with each change, what is there when it is told.
        """
        request = file_pb2.WatchRequest(
            session_id=self._id, path=path, recursive=recursive, include_entry=include_entry
        )
        stream = self._client._transport.stream(self._client._transport.files.Watch, request)
        try:
            first: Optional[file_pb2.WatchEvent] = stream.next()
            if first is None or not first.HasField("ready"):
                raise strange("a watch began with something else")
        except BaseException:
            stream.cancel()
            raise
        return Changes(stream)


class Changes:
    """What changes in a watched directory: iterate over it. It ends when the path does not name this directory any more; a
    connection that breaks is an error: watch anew, and then list. Close it, or use it in a `with`, when it is no longer
    wanted."""

    def __init__(self, stream: Incoming) -> None:
        """Use `Files.watch`."""
        self._stream = stream
        self._over = False

    def __iter__(self) -> Changes:
        return self

    def __next__(self) -> model.FileChange:
        while not self._over:
            event: Optional[file_pb2.WatchEvent] = self._stream.next()
            if event is None:
                raise strange("a watch ended without a word")
            if event.HasField("change"):
                return _wire.file_change(event.change)
            if event.HasField("overflow"):
                return _wire.overflow()
            self._over = event.HasField("ended")
        raise StopIteration

    def close(self) -> None:
        """Ends the watch."""
        self._over = True
        self._stream.cancel()

    def __enter__(self) -> Changes:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()


def _archive(header: file_pb2.UnpackHeader, source: Source) -> Iterator[file_pb2.UnpackRequest]:
    yield file_pb2.UnpackRequest(header=header)
    for piece in pieces(source):
        for start in range(0, len(piece), _wire.CHUNK):
            yield file_pb2.UnpackRequest(data=piece[start : start + _wire.CHUNK])
    yield file_pb2.UnpackRequest(end=file_pb2.UnpackEnd())


def _messages(header: file_pb2.WriteHeader, source: Source) -> Iterator[file_pb2.WriteRequest]:
    yield file_pb2.WriteRequest(header=header)
    for piece in pieces(source):
        for start in range(0, len(piece), _wire.CHUNK):
            yield file_pb2.WriteRequest(data=piece[start : start + _wire.CHUNK])
    yield file_pb2.WriteRequest(end=file_pb2.WriteEnd())
