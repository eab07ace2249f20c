"""A TCP proxy that can be told to misbehave: what stands between a client and its coordinator in tests of breaks."""

import socket
import threading
from typing import List


class Proxy:
    """Listens on a free port of loopback. What stands in `held` passes nothing on: `up` from the client, `down` to it."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.partition("://")[2].rpartition(":") if "://" in upstream else upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Condition()
        self._sockets: List[socket.socket] = []
        self._held = False
        self._refuses = False
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return "127.0.0.1:%d" % self._listener.getsockname()[1]

    def hold_down(self, held: bool) -> None:
        """Whether nothing comes to the client."""
        with self._lock:
            self._held = held
            self._lock.notify_all()

    def refuse(self, refuses: bool) -> None:
        """Whether connections are closed as soon as they come."""
        with self._lock:
            self._refuses = refuses

    def cut(self) -> None:
        """Cuts every connection there is, in the middle of whatever it carries."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
            self._lock.notify_all()
        self.cuts += bool(sockets)
        for end in sockets:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()

    def close(self) -> None:
        self._listener.close()
        self.hold_down(False)
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            try:
                if self._refuses:
                    raise OSError("refused")
                server = socket.create_connection(self._upstream)
            except OSError:
                client.close()
                continue
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets += [client, server]
            threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, down: bool) -> None:
        try:
            while True:
                data = source.recv(1 << 16)
                if not data:
                    break
                if down:
                    with self._lock:
                        while self._held and source in self._sockets:
                            self._lock.wait()
                        if source not in self._sockets:
                            return
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
