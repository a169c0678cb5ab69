"""What is asked for, and what all requests to one model share."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from itertools import count
from typing import Literal

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import EngineError
from kensho.base.events import Emit
from kensho.base.inference import Sampling
from kensho.base.structs import Struct, field
from kensho.resilience.admission import Priority
from kensho.resilience.budget import Budget
from kensho.resilience.estimate import AnswerLengths, EngineTimes
from kensho.resilience.failover import FailoverSettings, StreamRecord
from kensho.resilience.guard import Guard
from kensho.resilience.intake import Intake
from kensho.resilience.poison import PoisonList

Outcome = Literal["ok", "failed", "cancelled", "deadline"]
"""How a request that was taken in has ended. What becomes of the others is the intake's to tell."""


class Request(Struct):
    """What was asked for."""

    number: int
    """Unique in its scheduler: that of its events."""
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    priority: Priority
    deadline_s: Seconds
    is_whole: bool = False
    """The deadline is of the whole answer, not of its first token."""
    engine: str | None = None
    """The only engine that may answer; None: any."""


class Lasting(Struct, frozen=False, eq=False):
    """What is the model's and not its engines': it goes on when others take their place."""

    poison: PoisonList = field(factory=PoisonList)
    lengths: AnswerLengths = field(factory=AnswerLengths)
    """Of recent answers, in tokens."""
    numbers: Iterator[int] = field(factory=lambda: count(1))
    """Of the requests."""


class Floor(Struct, frozen=False, eq=False):
    """What all requests to one model share."""

    model: str
    guards: Mapping[str, Guard]
    intake: Intake
    settings: FailoverSettings
    retries: Budget
    hedges: Budget
    clock: Clock
    emit: Emit
    finished: Callable[[Request, Outcome, StreamRecord], None]
    closing: Callable[[], EngineError | None]
    """What to say instead of an engine's failure once the model is being closed."""
    bring_up: Callable[[str], Awaitable[None]]
    """Has an engine loaded that never was. Whoever waits for it may leave; the load goes on."""
    pump: Callable[[], None]
    """To be called when an engine may have become free."""
    times: Mapping[str, EngineTimes]
    lasting: Lasting
    unread: int = 0
    """Streams that were stopped because nobody reads them."""
