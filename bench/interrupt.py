"""What an interruption costs: the stream that is cut and goes on, the urgent request, and the wait in a long prefill.

    python bench/interrupt.py [--rounds 7] [--work FOLDER] [--tier packed]

The model has the real shape of Gemma 3 270M and random weights (bench/data/make_gemma.py: 75 s, compiled in 10 s, both
kept in --work). CPU ms of this process, one thread, medians; the two ways take turns within a round. "One cache" is the
same program without a second sequence and with the prefill in one call, as it was before there were any.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from harness import ROOT, print_bar, print_machine
from host_engines import compiled, own_mb
from kensho.base.inference import Sampling
from kensho.runtime.engine import generation
from kensho.runtime.engine.faults import Faults
from kensho.runtime.engine.generation import Generator
from kensho.runtime.engine.sampling import choose
from kensho.runtime.engine.session import Session
from kensho.runtime.hosts.frames import Generate

CONTEXT = 2048
PROMPT = [(2 + index * 7919) % 200_000 for index in range(384)]
LONG = [(2 + index * 7907) % 200_000 for index in range(2000)]
URGENT = list(range(5, 21))
TOKENS = 17
"""Made before the cut: 400 ids are held then."""
NEVER = 1 << 30


class OneCache(Session):
    """How it was: whoever comes next overwrites, and nobody looks up during a prefill."""

    piece_tokens = NEVER  # type: ignore[assignment]

    def branch(self, position: int) -> None:
        raise MemoryError


class Engine:
    """A generator that is asked for CPU times and logits."""

    def __init__(self, session: Session) -> None:
        self._generator = Generator(session, Faults())
        self.rows: list[np.ndarray] = []
        self.made: list[int] = []
        self.is_watched = False

    def run(
        self, prompt: Sequence[int], accepted: Sequence[int] = (), *, tokens: int = NEVER, asked: int = NEVER
    ) -> float:
        """CPU ms until so many tokens are made, or it was asked so often whether to go on."""
        self.made, self.rows, count = [], [], 0
        generation.choose = self._choose

        def is_cancelled() -> bool:
            nonlocal count
            count += 1
            return len(self.made) >= tokens or count > asked

        request = Generate(1, tuple(prompt), tuple(accepted), Sampling(max_tokens=40))
        began_s = time.process_time()
        self._generator.run(request, is_cancelled=is_cancelled, on_token=self.made.append)
        return 1e3 * (time.process_time() - began_s)

    def _choose(self, logits: np.ndarray, position: int, sampling: Sampling) -> int:
        if self.is_watched:
            self.rows.append(logits)
        return choose(logits, position, sampling)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench" / "runtime", help="the model, kept")
    parser.add_argument("--tier", choices=("mapped", "mixed", "packed"), default="packed")
    args = parser.parse_args()
    graph = compiled(args.work)
    print_machine("onnxruntime", "numpy")

    def load(kind: type[Session]) -> Engine:
        return Engine(kind.load(graph.graph_folder, graph.model_folder, tier=args.tier, max_context=CONTEXT, threads=1))

    whole = load(Session)
    print_memory(whole)
    whole.is_watched = True
    whole.run(LONG)
    whole.run(PROMPT)
    engines = {"two sequences": load(Session), "one cache": load(OneCache)}
    print(
        f"\na stream of {len(PROMPT) + TOKENS - 1} ids is cut for a request of {len(URGENT)}, and goes on ({args.tier})"
    )
    urgent = in_turn(engines, args.rounds, cut)
    back = in_turn(engines, args.rounds, lambda engine: resume(engine, whole.made))
    show("the urgent request's first token", urgent)
    show("the stream's next token", back)
    for name, engine in engines.items():
        same = sum((row == other).all() for row, other in zip(engine.rows, whole.rows[TOKENS:], strict=True))
        print(f"      {name}: {same} of {len(engine.rows)} later rows of logits have the bits of an uninterrupted run")
    print_bar("the next token of a stream that was cut", median(back["two sequences"]), 30, "CPU ms")
    print("\na prefill of 2000 ids is cancelled a moment after it began")
    free = in_turn(engines, args.rounds, prefill)
    show("until the engine is free", free)
    print_bar("of the whole prefill", median(free["two sequences"]) / median(free["one cache"]), 0.35, "")
    print(f"load average at the end: {', '.join(f'{value:.1f}' for value in os.getloadavg())}")


def cut(engine: Engine) -> float:
    engine.run(LONG[:80], tokens=1)  # something else
    engine.run(LONG[:20])
    engine.run(PROMPT, tokens=TOKENS)
    return engine.run(URGENT, tokens=1)


def resume(engine: Engine, made: Sequence[int]) -> float:
    cut(engine)
    spent_ms = engine.run(PROMPT, made[:TOKENS], tokens=1)
    cut(engine)
    engine.is_watched = True
    engine.run(PROMPT, made[:TOKENS])
    engine.is_watched = False
    return spent_ms


def prefill(engine: Engine) -> float:
    engine.run(LONG[::-1], asked=1)  # takes the place of what was left of it the last time
    engine.run(URGENT)
    return engine.run(LONG, asked=1)


def in_turn(engines: dict[str, Engine], rounds: int, measure: Callable[[Engine], float]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(rounds):
        for name in list(engines)[:: 1 if number % 2 else -1]:
            found[name].append(measure(engines[name]))
    return found


def show(what: str, found: dict[str, list[float]]) -> None:
    for name, values in found.items():
        span = f"{min(values):.1f} - {max(values):.1f}, n={len(values)}"
        print(f"      {what}, {name}: {median(values):.1f} CPU ms ({span})")


def print_memory(engine: Engine) -> None:
    engine.run(PROMPT, tokens=TOKENS)
    made, one = engine.made, own_mb(os.getpid())
    engine.run(URGENT)
    two = own_mb(os.getpid())
    engine.run(PROMPT, made, tokens=1)
    after = own_mb(os.getpid())
    print(
        f"\nown memory (RssAnon): {one:.1f} MB with 400 ids held, {two:.1f} with an urgent request's {len(URGENT) + 39}"
    )
    print(f"beside them, {after:.1f} after the stream was taken up again")


if __name__ == "__main__":
    main()
