"""One answer as a stream of tokens: `Kensho.generate`'s result.

answer = app.generate("dialogue", "Bonjour")
async with aclosing(answer):
    async for token in answer:
        print(token.text, end="")
answer.record                                # the figures
"""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING

from kensho.app.answers import AnswerRecord, LoadSource, Token
from kensho.app.asking import Asked, Asking
from kensho.base.clock import Clock, Seconds
from kensho.base.errors import ConfigError, EnginesOff
from kensho.base.inference import Sampling
from kensho.base.structs import Struct, field

if TYPE_CHECKING:
    from kensho.app.opening import ServedModel
    from kensho.resilience.router import Choice
    from kensho.resilience.stream_life import Answer


class AnswerStream:
    """The tokens of one answer. Iterate once; leave early with `aclose` (or by closing the application)."""

    def __init__(self, asking: Asking, *, max_context: int, clock: Clock) -> None:
        self._asking = asking
        self._max_context = max_context
        self._clock = clock
        self._tokens = self._run()
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

    async def _run(self) -> AsyncGenerator[Token, None]:
        """By one model after the other, until one has a first token."""
        while True:
            async with AsyncExitStack() as held:
                asked = await self._asking.begin(held)
                course, detokenizer = self._submit(asked), asked.served.codec.detokenizer()
                try:
                    async with aclosing(course.answer) as answer:
                        async for token in answer:
                            if self._course is None:
                                course.first_token_seconds = self._clock.monotonic_s() - self._asking.began_s
                                self._course = course
                            yield course.add(token, detokenizer.push(token))
                except EnginesOff as error:
                    if self._course is not None:
                        raise
                    await self._asking.lose(asked, error)
                    continue
                rest = detokenizer.finish()
                if rest:
                    yield course.add(None, rest)
                self._course, self._is_complete = course, True
                return

    def _submit(self, asked: Asked) -> "_Course":
        """The answer joins the queue when it is iterated."""
        from kensho.resilience.admission import parse_priority

        options, served = self._asking.options, asked.served
        answer = served.scheduler.submit(
            asked.prompt_ids,
            Sampling(options.max_tokens, options.temperature, options.seed, served.codec.stop_ids),
            priority=parse_priority(options.priority),
            deadline_s=self._asking.deadline_s,
            is_whole=options.is_whole,
            engine=options.engine,
        )
        room = min(self._max_context, served.graph.max_positions) - len(asked.prompt_ids)
        return _Course(
            served=served,
            choice=asked.choice,
            answer=answer,
            load_source="memory" if asked.was_loaded else served.graph.source,
            load_seconds=0.0 if asked.was_loaded else asked.loaded_seconds,
            first_token_seconds=asked.loaded_seconds,
            prompt_tokens=len(asked.prompt_ids),
            most_tokens=min(options.max_tokens, room),
        )


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
