"""`kensho run MODEL PROMPT`: one answer, streamed."""

import gc
from typing import TYPE_CHECKING

from kensho.cli import exits
from kensho.cli.arguments import Arguments
from kensho.cli.context import Context, Result

if TYPE_CHECKING:
    from kensho.app import AnswerRecord, Kensho


def add_arguments(arguments: Arguments) -> None:
    arguments.add_argument("model", metavar="MODEL")
    arguments.add_argument("prompt", metavar="PROMPT")
    arguments.add_argument("--max-tokens", type=int, default=256, metavar="N")
    arguments.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 = greedy, the default")
    arguments.add_argument("--seed", type=int, default=0, metavar="N")
    arguments.add_argument(
        "--engine", choices=("primary", "standby"), help="default: the primary, the standby when it fails"
    )
    arguments.add_argument("--tier", choices=("auto", "raw", "mapped", "mixed", "packed"), help="default: auto")
    arguments.add_argument("--priority", choices=("critical", "high", "normal", "low"), default="high")
    arguments.add_argument("--deadline", type=float, metavar="SECONDS", help="for the first token")
    arguments.add_argument("--raw-prompt", action="store_true", help="no chat template")


def run(context: Context) -> Result:
    import asyncio  # here: `kensho run --help` does not need it

    return asyncio.run(_alone(context))


async def _alone(context: Context) -> Result:
    async with context.open_app() as app:
        # The answer is told in there: it does not wait for the compile that closing the application finishes.
        return await act(context, app)


async def act(context: Context, app: "Kensho") -> Result:
    """The answer, told as it comes and then as a whole. Cancelling it stops the engine within one step."""
    from contextlib import aclosing

    from kensho.app import GenerateOptions

    args = context.args
    options = GenerateOptions(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        seed=args.seed,
        engine=args.engine,
        priority=args.priority,
        deadline_s=args.deadline,
        is_raw_prompt=args.raw_prompt,
    )
    async with aclosing(app.generate(args.model, args.prompt, options)) as answer:
        async for token in answer:
            context.output.piece(token.text)
            if not gc.isenabled():  # `entry` had switched it off until here; what there is now is no garbage
                gc.freeze()
                gc.enable()
        return _tell(context, answer.record)


def _tell(context: Context, record: "AnswerRecord") -> Result:
    output = context.output
    output.data("")
    output.note(
        f"{record.model} {record.version}, {record.tier} tier, graph from {record.load_source} in "
        f"{record.load_seconds:.2f} s; first token after {record.first_token_seconds:.2f} s"
        + (f", {record.tokens_per_second:.0f} tokens/s" if record.tokens_per_second else "")
        + (f", {record.failovers} failovers" if record.failovers else "")
    )
    if record.load_source == "raw" and record.tier == "raw" and context.settings.tier == "auto":
        output.note("it is compiled for this machine now, so that the next answer is faster")
    result = Result(exits.DEGRADED if record.is_fallback_model else exits.OK, record.as_json())
    output.summary(result.code, result.keys)
    return result
