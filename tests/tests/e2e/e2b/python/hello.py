"""As in the first lines of E2B's own documentation."""
from e2b import Sandbox

with Sandbox.create() as sandbox:
    sandbox.files.write("hello.txt", "Hello from Berth")
    print(sandbox.commands.run("test \"$(cat hello.txt)\" = 'Hello from Berth' && echo ok").stdout.strip())
