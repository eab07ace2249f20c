"""A disk that is full, with the synchronous SDK."""
from e2b import NotEnoughSpaceException, Sandbox

s = Sandbox.create(template="small", timeout=900)
s.files.write("kept", "as it was")
for data in (b"x" * (12 << 20),):
    try:
        s.files.write("kept", data)
        raise AssertionError("there is no such room")
    except NotEnoughSpaceException:
        pass
assert s.files.read("kept") == "as it was"
s.kill()
print("ok")
