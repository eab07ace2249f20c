"""Files, with the synchronous SDK."""
import hashlib, io, os, sys, urllib.request
from e2b import FileType, NotFoundException, Sandbox

s = Sandbox.create(timeout=900)
f = s.files

info = f.write("dir/deep/file.txt", "hällo\n")
assert (info.path, info.name) == ("/home/user/dir/deep/file.txt", "file.txt"), info
assert f.read("dir/deep/file.txt") == "hällo\n"
assert f.read("/home/user/dir/deep/file.txt", format="bytes") == "hällo\n".encode()
assert s.commands.run("cat dir/deep/file.txt").stdout == "hällo\n"
f.write("dir/deep/file.txt", "")
assert f.read("dir/deep/file.txt") == ""
name = "odd \"name\" & %41 ä.txt"
f.write(name, "odd")
assert f.read(name) == "odd" and f.exists(name) and s.commands.run("ls").stdout.find("odd") >= 0

i = f.get_info("dir")
assert (i.type, i.owner, i.group, i.permissions, i.mode) == (FileType.DIR, "user", "user", "drwxr-xr-x", 0o755), i
s.commands.run("printf 12345 > five; chmod 640 five; ln -s five link")
i = f.get_info("five")
assert (i.name, i.path, i.size, i.permissions, i.type) == ("five", "/home/user/five", 5, "-rw-r-----", FileType.FILE), i
i = f.get_info("link")
assert i.symlink_target == "five", i
assert f.get_info("/etc/passwd").owner == s.commands.run("stat -c %U /etc/passwd").stdout.strip()

names = lambda entries: sorted(e.path for e in entries)
assert names(f.list("dir")) == ["/home/user/dir/deep"]
assert names(f.list("dir", depth=2)) == ["/home/user/dir/deep", "/home/user/dir/deep/file.txt"]
assert f.make_dir("made/of/some") is True
assert f.make_dir("made/of/some") is False
assert f.exists("made/of") and not f.exists("made/not")
moved = f.rename("five", "made/six")
assert moved.path == "/home/user/made/six" and f.read("made/six") == "12345" and not f.exists("five")
f.remove("made")
assert not f.exists("made")
f.remove("made")

def fails(kind, call, *words):
    try:
        call()
    except kind as e:
        assert all(word in str(e) for word in words), repr(e)
        return
    raise AssertionError("it does not fail")

fails(NotFoundException, lambda: f.read("not/there"))
fails(NotFoundException, lambda: f.get_info("not/there"))
fails(NotFoundException, lambda: f.list("not/there"))
fails(NotFoundException, lambda: f.rename("not/there", "x"))
fails(Exception, lambda: f.read("dir"))
fails(Exception, lambda: f.write("dir", "x"))
fails(Exception, lambda: f.write("/etc/passwd", "x"))
fails(Exception, lambda: f.write("x", "x", user="root"), "ordinary user")

# Several at once, in the order given; both kinds of upload; sources that are streams.
written = f.write_files([{"path": "many/a", "data": "1"}, {"path": "many/b", "data": b"\x00\xff"}])
assert [w.path for w in written] == ["/home/user/many/a", "/home/user/many/b"], written
assert bytes(f.read("many/b", format="bytes")) == b"\x00\xff"
f.write("streamed", io.BytesIO(b"from a stream" * 1000))
assert f.get_info("streamed").size == 13000

# A big one, exact, both ways, and never whole in a memory but this one.
size = int(os.environ.get("BIG", 64 << 20)) + 17
block = hashlib.sha256(b"seed").digest() * 4096
big = (block * (size // len(block) + 1))[:size]
for data in (big, io.BytesIO(big)):
    f.write("big", data, request_timeout=0)
    said = s.commands.run("sha256sum big | cut -d' ' -f1; stat -c %s big; rm -f none").stdout.split()
    assert said == [hashlib.sha256(big).hexdigest(), str(size)], said
    got = hashlib.sha256()
    for chunk in f.read("big", format="stream", request_timeout=0):
        got.update(chunk)
    assert got.digest() == hashlib.sha256(big).digest()

# Links that carry their own right.
url = s.download_url("many/a")
assert urllib.request.urlopen(url).read() == b"1"
assert urllib.request.urlopen(s.download_url("many/a", use_signature_expiration=60)).read() == b"1"
def status(url, data=None, headers={}):
    try:
        return urllib.request.urlopen(urllib.request.Request(url, data, headers)).status
    except urllib.error.HTTPError as e:
        return e.code
other = url.replace("many/a", "many/b").replace("many%2Fa", "many%2Fb")
assert other != url and status(other) == 401
assert status(url + "x") == 401
assert status(s.download_url("many/a", use_signature_expiration=-5)) == 401
up = s.upload_url("uploaded")
body = b"--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\nby link\r\n--B--\r\n"
assert status(up, body, {"Content-Type": "multipart/form-data; boundary=B"}) == 200
assert f.read("uploaded") == "by link"
assert status(up) == 401, "it was signed for a write"

s.kill()
print("ok")
