"""A server as an application has it: the standard library, and a WebSocket by hand."""
import base64, hashlib, json, struct, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

go = threading.Semaphore(0)

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def text(self, body, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left > 0:
            piece = self.rfile.read(min(left, 65536))
            if not piece:
                raise ConnectionError("cut")
            left -= len(piece)
            yield piece

    def do_GET(self):
        if self.path == "/told":
            self.text(json.dumps([[name.lower(), value] for name, value in self.headers.items()]).encode())
        elif self.path == "/go":
            go.release()
            self.text(b"gone")
        elif self.path == "/events":
            # Each one only once the last has been seen.
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for n in range(3):
                event = b"data: %d\n\n" % n
                self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
                self.wfile.flush()
                go.acquire()
            self.wfile.write(b"0\r\n\r\n")
        elif self.path == "/hold":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            # Until the other side is gone.
            self.connection.recv(1)
        elif self.path.startswith("/big/"):
            size = int(self.path[5:])
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            piece = bytes(range(33, 97)) * 1024
            for at in range(0, size, len(piece)):
                self.wfile.write(piece[: size - at])
        elif self.path == "/ws":
            self.websocket()
        elif self.path == "/cookie":
            self.text(b"", 302, Set_Cookie="a=b; Path=/", Location="/next?x=%20", X_Own="1", Keep_Alive="timeout=9")
        else:
            self.text(f"hello {self.path}".encode())

    do_HEAD = do_DELETE = do_GET

    def do_POST(self):
        total, digest = 0, hashlib.sha256()
        for piece in self.body():
            total += len(piece)
            digest.update(piece)
        self.text(f"{self.command} {total} {digest.hexdigest()}".encode(), 201)

    do_PUT = do_POST

    def websocket(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        while True:
            first, second = self.rfile.read(2)
            size = second & 127
            if size == 126:
                size, = struct.unpack("!H", self.rfile.read(2))
            elif size == 127:
                size, = struct.unpack("!Q", self.rfile.read(8))
            mask = self.rfile.read(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(size)))
            head = bytes([first]) + (bytes([size]) if size < 126 else b"\x7e" + struct.pack("!H", size))
            self.wfile.write(head + data)
            if first & 15 == 8:
                return

class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, *_):
        pass

server = Server(("127.0.0.1", 0), Handler)
print("port", server.server_address[1], flush=True)
server.serve_forever()
