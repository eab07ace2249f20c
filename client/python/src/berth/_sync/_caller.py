# Made by generate.py of aio/_caller.py: don't change it here.
"""How a client makes its unary calls."""

from __future__ import annotations

from typing import Any, Callable

from .. import _policy
from ..errors import BerthError
from ._transport import Transport, sleep


class Caller:
    """The part of `Client` that calls."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def _call(self, policy: _policy.Policy, method: Callable[..., Any], message: Any) -> Any:
        """Makes a unary call, again where that is safe and may help."""
        backoff = _policy.Backoff()
        left = policy.attempts
        while True:
            try:
                return self._transport.unary(method, message, policy.deadline)
            except BerthError as error:
                left -= 1
                # A refused connection means that nothing runs there: to wait would only hide it.
                if not error.is_temporary or error.is_not_connected or left == 0:
                    raise
            sleep(backoff.next())
