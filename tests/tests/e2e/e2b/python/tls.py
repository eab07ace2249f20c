"""What stands at E2B_DOMAIN: the gateway with a certificate of its own (OWN_CA says of which authority), else a proxy before
it that knows nothing but TLS."""
import os, shutil, socket, ssl, subprocess, sys, tempfile, threading, urllib.parse

gateway = urllib.parse.urlsplit(os.environ.pop("E2B_API_URL"))
del os.environ["E2B_SANDBOX_URL"]
own_ca = os.environ.get("OWN_CA")
if own_ca is None and shutil.which("openssl", path=os.environ["PATH"]) is None:
    print("skipped: no openssl to make a certificate with")
    sys.exit(0)

def pipe(a, b):
    try:
        while data := a.recv(65536):
            b.sendall(data)
    except OSError:
        pass
    for end in (a, b):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

def converse(plain):
    try:
        front = context.wrap_socket(plain, server_side=True)
    except OSError:
        return
    back = socket.create_connection((gateway.hostname, gateway.port))
    threading.Thread(target=pipe, args=(back, front), daemon=True).start()
    pipe(front, back)

def accept():
    while True:
        threading.Thread(target=converse, args=(server.accept()[0],), daemon=True).start()

def proxy():
    """Its certificate, and its port."""
    global server, context, work
    work = tempfile.TemporaryDirectory()
    key, cert = work.name + "/key.pem", work.name + "/cert.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=berth.localhost",
                    "-addext", "subjectAltName=DNS:*.berth.localhost", "-addext", "basicConstraints=critical,CA:FALSE"],
                   check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["http/1.1"])
    server = socket.create_server(("127.0.0.1", 0), backlog=64)
    threading.Thread(target=accept, daemon=True).start()
    return cert, server.getsockname()[1]

cert, port = (own_ca, gateway.port) if own_ca else proxy()
os.environ["E2B_DOMAIN"] = f"berth.localhost:{port}"
os.environ["SSL_CERT_FILE"] = cert
