"""The way of one request to a loaded model: who answers, its engines, the prompt as ids. For streams and for logits.

asking = Asking(router, prompt, options, serve=..., clock=clock)
while True:
    async with AsyncExitStack() as held:              # the model stays loaded until its end
        asked = await asking.begin(held)
        try: ... asked.served.scheduler ...
        except EnginesOff as error: await asking.lose(asked, error)    # another model, or the error again
"""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from kensho.app.answers import GenerateOptions, Prompt
from kensho.base.clock import Clock, Seconds
from kensho.base.errors import DeadlineMissed, EnginesOff
from kensho.base.structs import Struct

if TYPE_CHECKING:
    from kensho.app.opening import ServedModel
    from kensho.app.routing import Router
    from kensho.app.serving import Serving
    from kensho.resilience.router import Choice
    from kensho.runtime.text.codec import TextCodec

LONG_PROMPT_CHARS = 20_000
"""Turning so many into ids takes some 10 ms: that is done beside the event loop."""
RETRY_AFTER_S: Seconds = 1.0
"""Of a request whose deadline was over before its model was loaded (guess: most of a load from the disk)."""


class Asked(Struct):
    """A model that is loaded, and the prompt in its words."""

    served: "ServedModel"
    choice: "Choice"
    prompt_ids: list[int]
    was_loaded: bool
    """Before it was asked for."""
    loaded_seconds: Seconds
    """From the request to here, but for the ids."""


class Asking:
    """One request. It begins when this is made."""

    def __init__(
        self,
        router: "Router",
        prompt: Prompt,
        options: GenerateOptions,
        *,
        serve: "Callable[[], Serving]",
        clock: Clock,
    ) -> None:
        """`router` says which installed model answers; `serve` gives what loads it."""
        self.options = options
        self.began_s = clock.monotonic_s()
        self.deadline_s = None if options.deadline_s is None else self.began_s + options.deadline_s
        """Of what the caller waits for, on the monotonic clock; None: that of its priority, once it is queued."""
        self._router = router
        self._prompt = prompt
        self._serve = serve
        self._clock = clock

    async def begin(self, held: AsyncExitStack) -> Asked:
        """Load the model that answers; it is in use until the end of `held`. A deadline that was given bounds this too:
        DeadlineMissed, while the load goes on for whoever comes next."""
        import asyncio

        try:
            async with asyncio.timeout_at(self.deadline_s) as limit:
                choice, was_loaded, served = await self._load(held)
                loaded_seconds = self._clock.monotonic_s() - self.began_s
                prompt_ids = await _encode(served.codec, self._prompt, is_raw=self.options.is_raw_prompt)
        except TimeoutError:
            if not limit.expired():
                raise
            name = self._router.wanted
            raise DeadlineMissed(
                f"{self.options.priority} request had no engine by its deadline: {name!r} is being loaded",
                advice="the load goes on: allow more time, or come back",
                retry_after_s=RETRY_AFTER_S,
            ) from None
        return Asked(served, choice, prompt_ids, was_loaded, loaded_seconds)

    async def lose(self, asked: Asked, error: EnginesOff) -> None:
        """No engine of the model is left, and the caller has seen nothing yet: `begin` again. Raises `error` where the
        caller wants this engine and no other."""
        if self.options.engine is not None:
            raise error
        await self._router.lost(asked.served.graph.model, error)

    async def _load(self, held: AsyncExitStack) -> "tuple[Choice, bool, ServedModel]":
        """One that cannot be loaded here is replaced by its fallback."""
        from kensho.app.routing import CANNOT_BE_LOADED

        serving = self._serve()
        while True:
            installed, choice = await self._router.choose()
            was_loaded = serving.answering(installed.model) is not None
            try:
                return choice, was_loaded, await held.enter_async_context(serving.use(installed))
            except CANNOT_BE_LOADED as error:
                await self._router.lost(installed.model, error)


async def ask_logits(asking: Asking) -> Sequence[float]:
    """See `Kensho.logits`."""
    from kensho.resilience.admission import parse_priority

    options = asking.options
    while True:
        async with AsyncExitStack() as held:
            asked = await asking.begin(held)
            try:
                return await asked.served.scheduler.logits(
                    asked.prompt_ids,
                    priority=parse_priority(options.priority),
                    deadline_s=asking.deadline_s,
                    engine=options.engine,
                )
            except EnginesOff as error:
                await asking.lose(asked, error)


async def _encode(codec: "TextCodec", prompt: Prompt, *, is_raw: bool) -> list[int]:
    def encode() -> list[int]:
        return codec.prompt_ids(prompt, is_raw=is_raw) if isinstance(prompt, str) else codec.chat_ids(prompt)

    size = len(prompt) if isinstance(prompt, str) else sum(len(message["content"]) for message in prompt)
    if size <= LONG_PROMPT_CHARS:
        return encode()
    import asyncio

    return await asyncio.to_thread(encode)
