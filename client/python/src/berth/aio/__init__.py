"""The same for asyncio, with the same names.

    import berth.aio

    async with await berth.aio.Client.connect() as client, client.session(ttl=600) as session:
        output = await session.run(["python3", "-c", "print(6 * 7)"])
        assert output.stdout == b"42\\n"

Values and errors are those of `berth`. A client belongs to the event loop in which it was made.
"""

from ._client import Client
from ._files import Changes, Files
from ._interpreter import Context
from ._ports import PortForward, PortStream
from ._session import Session, SessionContext
from ._stream import TaskStream
from ._task import Task

__all__ = [
    "Changes",
    "Client",
    "Context",
    "Files",
    "PortForward",
    "PortStream",
    "Session",
    "SessionContext",
    "Task",
    "TaskStream",
]
