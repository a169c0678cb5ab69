"""Does int8 still say what the model says? Perplexity and best tokens of each compiled tier against exact float32.

    python bench/runtime_truth.py

The model is the trained one that ships with Kensho (src/kensho/demo/model/v1, 1.1 M parameters); the text is what it
was not trained on: the held-out wordings of models/demo/corpus.*.txt, and the answers that follow them. It was trained
to predict answers only, hence the perplexity of the questions. The bar: int8's is within 1 % of float32's.
"""

import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tokenizers import Tokenizer

from kensho.base.clock import SystemClock
from kensho.base.ids import digest_of
from kensho.runtime.cache.header import KeyFields
from kensho.runtime.compiling.stages import compile_model
from kensho.runtime.engine.session import Session, Tier
from kensho.runtime.graph.raw_graph import build_raw
from kensho.runtime.system.machine import read_machine
from kensho.testing.perplexity import Text, compare

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "src" / "kensho" / "demo" / "model" / "v1"
CORPUS = ROOT / "models" / "demo"
BAR = 0.01


def held_out_texts() -> dict[str, list[Text]]:
    """By kind: the answers to held-out wordings, these wordings themselves (never seen), and both together."""
    spec = importlib.util.spec_from_file_location("demo_corpus", CORPUS / "corpus.py")
    assert spec and spec.loader
    corpus = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = corpus  # dataclasses look their module up
    spec.loader.exec_module(corpus)
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return found

    entries = [entry for name in ("en", "fr", "other") for entry in corpus.read_corpus(CORPUS / f"corpus.{name}.txt")]
    asked = [(question, entry.answer) for entry in entries for question in entry.held_out]
    questions = [ids(f"<bos>{corpus.prompt(question)}") for question, _ in asked]
    answers = [ids(f"{answer}{corpus.END}\n") for _, answer in asked]
    both = list(zip(questions, answers, strict=True))
    return {
        "answers": [Text(question + answer, given=len(question)) for question, answer in both],
        "questions": [Text(question) for question in questions],
        "both": [Text(question + answer) for question, answer in both],
    }


def sessions(folder: Path) -> Iterator[tuple[Tier, Session]]:
    machine = read_machine()
    key = KeyFields(
        weights_digest=digest_of(b"weights"),
        config_digest=digest_of(b"config"),
        tokenizer_digest=digest_of(b"tokenizer"),
        engine_version=machine.engine_version,
        arch=machine.arch,
        system=machine.system,
        cpu_features=machine.cpu_features,
        max_positions=1024,
    )
    compiled, raw = folder / "compiled", folder / "raw"
    for out in (compiled, raw):
        out.mkdir()
    compile_model(MODEL, compiled, key=key, model="demo", version="1", clock=SystemClock(), progress=lambda *_: None)
    build_raw(MODEL, raw)
    tiers: tuple[Tier, ...] = ("raw", "mapped", "mixed", "packed")
    for tier in tiers:
        yield tier, Session.load(raw if tier == "raw" else compiled, MODEL, tier=tier, max_context=1024, threads=1)


def main() -> None:
    texts = held_out_texts()
    with tempfile.TemporaryDirectory() as name:
        made = dict(sessions(Path(name)))
        print(f"{'text':14} {'tier':8} {'tokens':>7} {'float32':>9} {'int8':>9} {'excess':>8} {'same best':>10}")
        for kind, of_kind in texts.items():
            for tier in ("mapped", "mixed", "packed"):
                found = compare(made["raw"], made[tier], of_kind)
                print(
                    f"{kind:14} {tier:8} {found.tokens:7} {found.exact_perplexity:9.4f} {found.perplexity:9.4f} "
                    f"{found.excess:8.3%} {found.agreement:10.3%}  {'PASS' if found.excess <= BAR else 'MISS'}"
                )
        for session in made.values():
            with closing(session):
                pass


if __name__ == "__main__":
    main()
