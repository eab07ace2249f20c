# Made by generate.py of aio/_files.py: don't change it here.
"""Files of a session. Paths are relative to the workspace, or absolute inside the sandbox; the kernel there decides what may
be touched, as the task's user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterator, Callable, List, Optional

from .. import _policy, _wire, model
from .._proto import file_pb2
from ..errors import BerthError, strange
from ._transport import Source, pieces

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


def _messages(header: file_pb2.WriteHeader, source: Source) -> Iterator[file_pb2.WriteRequest]:
    yield file_pb2.WriteRequest(header=header)
    for piece in pieces(source):
        for start in range(0, len(piece), _wire.CHUNK):
            yield file_pb2.WriteRequest(data=piece[start : start + _wire.CHUNK])
    yield file_pb2.WriteRequest(end=file_pb2.WriteEnd())
