"""Stateful Python: what one execution defines is there for the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Mapping, Optional

from .. import _policy, _wire, model
from .._proto import interpreter_pb2
from ..errors import strange

if TYPE_CHECKING:
    from ._client import Client

#: Starting an interpreter, with what it imports.
START = 120.0


class Context:
    """An interpreter of a session. It lives as long as the session's sandbox, or until it is deleted. Every method raises
    `berth.BerthError`."""

    id: str

    def __init__(self, client: Client, session_id: str, context_id: str) -> None:
        """Use `Session.create_context` or `Session.context`."""
        self.id = context_id
        self._client = client
        self._session_id = session_id
        self._contexts = client._transport.contexts

    async def run(
        self,
        code: str,
        *,
        timeout: Optional[model.Seconds] = None,
        env: Optional[Mapping[str, str]] = None,
        output_limit: int = 0,
    ) -> model.Execution:
        """Runs code and returns what came of it. An exception in it, a timeout and the interpreter's death are what the code did,
        and no error here: `Execution.outcome` says so. It goes on when this call is given up: `interrupt` ends it.

        timeout: when it has passed, the code is interrupted. If left out the session's default; 0 is none.
        env: variables of this execution alone.
        output_limit: bytes of output that are kept, at most 16 MiB. 0 is 4 MiB.
        """
        request = interpreter_pb2.ExecuteRequest(
            session_id=self._session_id,
            context_id=self.id,
            code=code,
            timeout=_wire.duration_out(timeout),
            output_limit=output_limit,
            request_id=_wire.new_id(),
            env=env,
        )
        stream = self._client._transport.stream(self._contexts.Execute, request)
        events: List[interpreter_pb2.ExecuteEvent] = []
        try:
            while True:
                event: Optional[interpreter_pb2.ExecuteEvent] = await stream.next()
                if event is None:
                    raise strange("an execution ended without an outcome")
                events.append(event)
                if event.HasField("ended"):
                    return _wire.execution(events)
        finally:
            stream.cancel()

    async def interrupt(self) -> None:
        """Interrupts what runs, as Control-C does. No error if nothing does."""
        request = interpreter_pb2.InterruptContextRequest(session_id=self._session_id, context_id=self.id)
        await self._client._call(_policy.once(), self._contexts.InterruptContext, request)

    async def restart(self) -> model.ContextInfo:
        """Starts its interpreter anew: all that it had defined is gone."""
        request = interpreter_pb2.RestartContextRequest(session_id=self._session_id, context_id=self.id)
        return _wire.context_info(await self._client._call(_policy.once(START), self._contexts.RestartContext, request))

    async def delete(self) -> None:
        """Ends it with all its processes. No error if it is gone already."""
        request = interpreter_pb2.DeleteContextRequest(session_id=self._session_id, context_id=self.id)
        await self._client._call(_policy.repeatable(), self._contexts.DeleteContext, request)

    def __repr__(self) -> str:
        return f"Context({self.id})"
