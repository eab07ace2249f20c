"""How calls are made and made again: deadlines, waits between tries, and starting a task once although answers get lost.

Without a connection and without a clock: the async and the sync client share it.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Optional

from .errors import BerthError, Reason


@dataclasses.dataclass(frozen=True)
class Policy:
    """How a unary call is made."""

    deadline: Optional[float]
    """Seconds for each try. None: as long as it takes."""
    attempts: int
    """In all, where the call is safe to repeat."""


#: Of a call that says nothing of it, in seconds.
DEADLINE = 30.0
#: Tries of a call that is safe to repeat.
ATTEMPTS = 4
#: How long a new session waits for a place where nothing is said, in seconds.
WAIT_FOR_PLACE = 30.0
#: What a sandbox may take to start, on top of that.
START = 90.0
#: Ending, freezing: as long as a worker may take over it.
CHANGE = 90.0
#: What the coordinator gives a checkpoint, and some time to wait for others that go first.
TAKE = 1200.0
#: What a session may take to be restored, on top of the wait for a place.
RESTORE = 960.0
#: A parked session waits for a place for as long as it was made to: the coordinator says when that is over.
LONGEST_WAIT = 86_400.0
#: Removing or listing a big tree takes its time.
TREE = 120.0
#: A server that takes nothing, or sends nothing, for this long is gone. (Quiet streams have keepalives.)
SILENCE = 60.0
#: How long the first tries of a stream may go on: a caller waits for these.
FIRST_WINDOW = 2.0


def repeatable(deadline: Optional[float] = DEADLINE) -> Policy:
    """Of reads, and of changes that end the same however often they are asked for."""
    return Policy(deadline, ATTEMPTS)


def once(deadline: Optional[float] = DEADLINE) -> Policy:
    """Of changes that must not be made twice."""
    return Policy(deadline, 1)


class Backoff:
    """Waits that double, with jitter, so that a fleet of clients does not come back in step."""

    FIRST = 0.05
    LONGEST = 2.0

    def __init__(self) -> None:
        self._step = self.FIRST

    def next(self) -> float:
        """Between half and all of the current step, in seconds; the next step is twice as long."""
        step = self._step
        self._step = min(step * 2, self.LONGEST)
        return step * (0.5 + 0.5 * random.random())


#: Why a start is refused that was sent for the first time all the same: the session looked for its request id before.
_SETTLED = {
    Reason.TOO_MANY_TASKS,
    Reason.DISK_FULL,
    Reason.CWD_NOT_FOUND,
    Reason.INVALID_FIELD,
    Reason.REQUEST_ID_REUSED,
    Reason.TASK_NOT_FOUND,
    Reason.SESSION_FENCED,
}


class Attempt:
    """A start under way.

    One whose answer was lost is sent again under the same request id, by which the session knows what it started already.
    A session that went back to a checkpoint knows that too, but only of what was started before the checkpoint. So each
    start says to which placement of the session it was first sent, and a newer one refuses it unless it knows the id.
    Then nobody knows whether the task has run: that is told, and it is started again only if the caller said so.
    """

    def __init__(self, epoch: int, again: bool) -> None:
        self.epoch = epoch
        self._doubt = False
        self._again = again

    def failed(self, error: BerthError) -> Optional[BerthError]:
        """What a try that failed means. None: try again at once. An error: it may work in a moment. Raises it when it is over."""
        if error.reason == Reason.SESSION_RECOVERED:
            self._recovered(error)
            return None
        in_doubt = self._doubt and error.reason not in _SETTLED
        self._doubt |= error.was_lost
        if in_doubt:
            error = error.doubtful("task has started")
        if error.is_temporary and not error.is_not_connected:
            return error
        raise error

    def _recovered(self, error: BerthError) -> None:
        told = error.details.get("epoch", "")
        now = int(told) if told.isascii() and told.isdigit() else 0
        if now <= self.epoch:
            raise error
        if self._doubt and not self._again:
            raise error.doubtful()
        # Refused at the first try, and so not started: only what was known here was old.
        self.epoch, self._doubt = now, False
