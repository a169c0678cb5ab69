"""One answer as a stream of tokens: `Kensho.generate`'s result.

answer = app.generate("dialogue", "Bonjour")
async with aclosing(answer):
    async for token in answer:
        print(token.text, end="")
answer.record                                # the figures
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING

from kensho.app.answers import AnswerRecord, GenerateOptions, LoadSource, Prompt, Token
from kensho.base.clock import Clock, Seconds
from kensho.base.errors import ConfigError, DeadlineMissed, EnginesOff
from kensho.base.inference import Sampling
from kensho.base.structs import Struct, field

if TYPE_CHECKING:
    from kensho.app.opening import ServedModel
    from kensho.app.routing import Router
    from kensho.app.serving import Serving
    from kensho.resilience.router import Choice
    from kensho.resilience.stream_life import Answer
    from kensho.runtime.text.codec import TextCodec
    from kensho.runtime.text.detokenizer import Detokenizer

LONG_PROMPT_CHARS = 20_000
"""Turning so many into ids takes some 10 ms: that is done beside the event loop."""
RETRY_AFTER_S: Seconds = 1.0
"""Of a request whose deadline was over before its model was loaded (guess: most of a load from the disk)."""


class AnswerStream:
    """The tokens of one answer. Iterate once; leave early with `aclose` (or by closing the application)."""

    def __init__(
        self,
        router: "Router",
        prompt: Prompt,
        options: GenerateOptions,
        *,
        serve: "Callable[[], Serving]",
        max_context: int,
        clock: Clock,
    ) -> None:
        """`router` says which installed model answers; `serve` gives what loads it."""
        self._router = router
        self._serve = serve
        self._max_context = max_context
        self._clock = clock
        self._began_s = clock.monotonic_s()
        self._tokens = self._run(prompt, options)
        self._course: _Course | None = None  # from the first token on
        self._is_complete = False

    @property
    def record(self) -> AnswerRecord:
        """What happened. ConfigError before the answer is complete."""
        if not self._is_complete:
            raise ConfigError("the answer is not complete", advice="iterate to its end first")
        return self.so_far

    @property
    def so_far(self) -> AnswerRecord:
        """What has happened until now, also of an answer that was left early. ConfigError before its first token."""
        if self._course is None:
            raise ConfigError("the answer has not begun", advice="wait for its first token")
        return self._course.record()

    def __aiter__(self) -> AsyncGenerator[Token, None]:
        return self._tokens

    async def aclose(self) -> None:
        """Cancel: the engine stops within one step. Idempotent."""
        await self._tokens.aclose()

    async def _run(self, prompt: Prompt, options: GenerateOptions) -> AsyncGenerator[Token, None]:
        """By one model after the other, until one has a first token."""
        while True:
            async with AsyncExitStack() as held:
                course, detokenizer = await self._begin(held, prompt, options)
                try:
                    async with aclosing(course.answer) as answer:
                        async for token in answer:
                            if self._course is None:
                                course.first_token_seconds = self._clock.monotonic_s() - self._began_s
                                self._course = course
                            yield course.add(token, detokenizer.push(token))
                except EnginesOff as error:
                    if self._course is not None or options.engine is not None:
                        raise
                    await self._router.lost(course.served.graph.model, error)
                    continue
                rest = detokenizer.finish()
                if rest:
                    yield course.add(None, rest)
                self._course, self._is_complete = course, True
                return

    async def _begin(
        self, held: AsyncExitStack, prompt: Prompt, options: GenerateOptions
    ) -> "tuple[_Course, Detokenizer]":
        """The answer, not yet in a queue. A deadline that was given bounds this too; the load goes on after it."""
        import asyncio

        deadline_s = None if options.deadline_s is None else self._began_s + options.deadline_s
        try:
            async with asyncio.timeout_at(deadline_s) as limit:
                choice, was_loaded, served = await self._load(held)
                loaded_seconds = self._clock.monotonic_s() - self._began_s
                prompt_ids = await _encode(served.codec, prompt, is_raw=options.is_raw_prompt)
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineMissed(
                f"{options.priority} request had no engine by its deadline: {self._router.wanted!r} is being loaded",
                advice="the load goes on: allow more time, or come back",
                retry_after_s=RETRY_AFTER_S,
            ) from None
        room = min(self._max_context, served.graph.max_positions) - len(prompt_ids)
        course = _Course(
            served=served,
            choice=choice,
            answer=self._submit(served, prompt_ids, options),
            load_source="memory" if was_loaded else served.graph.source,
            load_seconds=0.0 if was_loaded else loaded_seconds,
            first_token_seconds=loaded_seconds,
            prompt_tokens=len(prompt_ids),
            most_tokens=min(options.max_tokens, room),
        )
        return course, served.codec.detokenizer()

    def _submit(self, served: "ServedModel", prompt_ids: list[int], options: GenerateOptions) -> "Answer":
        from kensho.resilience.admission import parse_priority

        return served.scheduler.submit(
            prompt_ids,
            Sampling(options.max_tokens, options.temperature, options.seed, served.codec.stop_ids),
            priority=parse_priority(options.priority),
            deadline_s=None if options.deadline_s is None else self._began_s + options.deadline_s,
            is_whole=options.is_whole,
            engine=options.engine,
        )

    async def _load(self, held: AsyncExitStack) -> "tuple[Choice, bool, ServedModel]":
        """The model that answers, loaded, and whether it was before. One that cannot be loaded here is replaced by
        its fallback."""
        from kensho.app.routing import CANNOT_BE_LOADED

        serving = self._serve()
        while True:
            installed, choice = await self._router.choose()
            was_loaded = serving.answering(installed.model) is not None
            try:
                return choice, was_loaded, await held.enter_async_context(serving.use(installed))
            except CANNOT_BE_LOADED as error:
                await self._router.lost(installed.model, error)


class _Course(Struct, frozen=False, kw_only=True):
    """What has happened of one answer."""

    served: "ServedModel"
    choice: "Choice"
    answer: "Answer"
    load_source: LoadSource
    load_seconds: Seconds
    prompt_tokens: int
    most_tokens: int
    first_token_seconds: Seconds
    token_ids: list[int] = field(factory=list)
    pieces: list[str] = field(factory=list)

    def add(self, token: int | None, text: str) -> Token:
        if token is not None:
            self.token_ids.append(token)
        self.pieces.append(text)
        return Token(token, text)

    def record(self) -> AnswerRecord:
        served, figures = self.served, self.answer.record
        return AnswerRecord(
            model=served.graph.model,
            version=served.graph.version,
            text="".join(self.pieces),
            token_ids=tuple(self.token_ids),
            load_source=self.load_source,
            load_seconds=self.load_seconds,
            first_token_seconds=self.first_token_seconds,
            tokens_per_second=figures.tokens_per_second,
            engine=figures.engine,
            tier=served.tier_of(figures.engine),
            failovers=figures.failovers,
            gap_ms=figures.gap_ms,
            is_fallback_model=self.choice.is_fallback,
            reason=self.choice.reason,
            prompt_tokens=self.prompt_tokens,
            finish="length" if len(self.token_ids) >= self.most_tokens else "stop",
        )


async def _encode(codec: "TextCodec", prompt: Prompt, *, is_raw: bool) -> list[int]:
    def encode() -> list[int]:
        return codec.prompt_ids(prompt, is_raw=is_raw) if isinstance(prompt, str) else codec.chat_ids(prompt)

    size = len(prompt) if isinstance(prompt, str) else sum(len(message["content"]) for message in prompt)
    if size <= LONG_PROMPT_CHARS:
        return encode()
    import asyncio

    return await asyncio.to_thread(encode)
