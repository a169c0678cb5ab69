"""Small tokenizers of every covered kind, trained here in a moment, and their tables."""

import json
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from kensho.base.structs import Struct
from kensho.runtime.text.tokenizer import build
from kensho.runtime.text.tokenizer.decode import Decoder
from kensho.runtime.text.tokenizer.encode import Encoder
from kensho.runtime.text.tokenizer.plan import parse_plan
from kensho.runtime.text.tokenizer.tables import Tables

ROOT = Path(__file__).parents[4]
MARK = "\u2581"
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn>", "</turn>"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def corpus() -> list[str]:
    """This project's pages and sources, its French, and scripts that have no spaces."""
    pages = [path.read_text() for path in sorted(ROOT.glob("docs/**/*.md"))]
    code = [path.read_text() for path in sorted(ROOT.glob("src/kensho/runtime/*/*.py"))]
    other = (ROOT / "models" / "demo" / "corpus.fr.txt").read_text()
    unspaced = "".join(chr(0x4E00 + (n * n * 7 + n // 3) % 300) for n in range(20_000))
    kana = "".join(chr(0x3041 + (n * 13 + n // 7) % 80) for n in range(10_000))
    thai = "".join(chr(0xE01 + (n * n + n // 5) % 50) for n in range(10_000))
    return [
        *pages,
        *code,
        other,
        unspaced,
        kana,
        thai,
        *made_up_words(),
        "e\u0301 \u0958 \U0001f469\u200d\U0001f4bb " * 50,
    ]


def made_up_words() -> Iterator[str]:
    """Words with spaces whose characters share their first bytes, a few of the words very frequent."""
    for first, count in ((0xAC00, 600), (0x410, 64), (0x5200, 300)):
        words = []
        for word in range(1500):
            words.append(
                "".join(chr(first + (word * word * 31 + at * 17 * word) % count) for at in range(1 + word % 4))
            )
        yield " ".join(words[(n * n * 7 + n) % (1 + n % 1500)] for n in range(12_000))


def train(tokenizer: Tokenizer, size: int, **options: Any) -> Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False, **options)
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def byte_level(
    pattern: str | None = None, *, normalizer: Any = None, ignores_merges: bool = False, prefix: bool = False
) -> Tokenizer:
    made = Tokenizer(models.BPE(ignore_merges=ignores_merges))
    made.normalizer = normalizer
    if pattern is None:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    else:
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), last])
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return train(made, 3000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def sentence_piece(*, trained_with: Any, **parts: Any) -> Tokenizer:
    """A BPE over characters with byte fallback; `parts` of its JSON replace what training needed."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", MARK)
    made.pre_tokenizer = trained_with
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    made.add_special_tokens(SPECIAL)
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=[*SPECIAL, *names], show_progress=False, limit_alphabet=500
    )
    made.train_from_iterator(corpus(), trainer)
    document = json.loads(made.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if not token["content"].startswith("<0x")]
    document["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    return Tokenizer.from_str(json.dumps(document | parts))


GEMMA: Mapping[str, Any] = {
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": MARK},
    "pre_tokenizer": {
        "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
    },
    "decoder": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": MARK}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    },
}  # fmt: skip
LLAMA2 = {
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": MARK}, GEMMA["normalizer"]]},
    "pre_tokenizer": None,
    "decoder": {
        "type": "Sequence",
        "decoders": [*GEMMA["decoder"]["decoders"], {"type": "Strip", "content": " ", "start": 1, "stop": 0}],
    },
}


def metaspace(scheme: str, split: bool) -> dict[str, Any]:
    step = {"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": split}
    return {"normalizer": None, "pre_tokenizer": step, "decoder": {key: step[key] for key in step}}


BY_WORDS = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(MARK, "merged_with_next"),
        pre_tokenizers.Split(Regex(rf"{MARK}*\p{{L}}+|\p{{N}}|{MARK}*[^{MARK}\p{{L}}\p{{N}}]+|{MARK}+"), "isolated"),
    ]
)
BY_LINES = pre_tokenizers.Split("\n", "isolated")


def with_added(tokenizer: Tokenizer) -> Tokenizer:
    """Runs of line ends and tags as added tokens, one of them matched after normalising."""
    plain = [AddedToken(text, normalized=False) for text in ("\n\n", "\n\n\n", "<table>", "</table>", "<", MARK * 2)]
    tokenizer.add_tokens([*plain, AddedToken("the end", normalized=True)])
    return tokenizer


KINDS: Mapping[str, Callable[[], Tokenizer]] = {
    "gemma": lambda: sentence_piece(trained_with=BY_WORDS, **GEMMA),
    "gemma, added tokens": lambda: with_added(sentence_piece(trained_with=BY_WORDS, **GEMMA)),
    "gemma, words and signs mixed": lambda: sentence_piece(
        trained_with=pre_tokenizers.Split(MARK, "merged_with_next"), **GEMMA
    ),
    "gemma, trained across words": lambda: sentence_piece(trained_with=BY_LINES, **GEMMA),
    "llama 2": lambda: sentence_piece(trained_with=BY_WORDS, **LLAMA2),
    "metaspace first": lambda: sentence_piece(trained_with=BY_WORDS, **metaspace("first", True)),
    "metaspace always, whole": lambda: sentence_piece(trained_with=BY_WORDS, **metaspace("always", False)),
    "metaspace never": lambda: sentence_piece(trained_with=BY_WORDS, **metaspace("never", True)),
    "gpt-2": byte_level,
    "gpt-2, prefix space": lambda: byte_level(prefix=True),
    "llama 3": lambda: byte_level(LLAMA3, ignores_merges=True),
    "qwen": lambda: byte_level(LLAMA3.replace("{1,3}", ""), normalizer=normalizers.NFC()),
    "o200k, added tokens": lambda: with_added(byte_level(O200K)),
}
CHARACTERS = [kind for kind in KINDS if kind.startswith(("gemma", "llama 2", "metaspace"))]


class Pair(Struct):
    """The library, and tables of the same tokenizer."""

    library: Tokenizer
    data: bytes
    encoder: Encoder
    decoder: Decoder

    def ids(self, text: str) -> list[int]:
        return list(self.library.encode(text, add_special_tokens=False).ids)

    def text(self, ids: list[int]) -> str:
        return self.library.decode(ids, skip_special_tokens=True)


def opened(data: bytes) -> tuple[Encoder, Decoder]:
    tables = Tables(memoryview(data), "test")
    plan = parse_plan(tables.meta["plan"])
    return Encoder(tables, plan), Decoder(tables, plan)


@cache
def _trained(kind: str) -> Tokenizer:
    return KINDS[kind]()


@cache
def _unchecked(kind: str) -> Pair:
    """Tables without the self-check, which takes seconds."""
    library = _trained(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "check_tables", lambda *_: None)
        data = build.build_tables(library.to_str().encode(), {})
    return Pair(library, data, *opened(data))


@pytest.fixture(scope="session")
def trained() -> Callable[[str], Tokenizer]:
    return _trained


@pytest.fixture(scope="session")
def unchecked() -> Callable[[str], Pair]:
    return _unchecked


@pytest.fixture(scope="session", params=KINDS)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Each kind in turn."""
    return _unchecked(request.param)


@pytest.fixture(scope="session")
def foreign_words() -> list[str]:
    return sorted({word for text in made_up_words() for word in text.split(" ")})


@pytest.fixture(scope="session")
def python_sources() -> list[str]:
    """Text that no tokenizer here was trained on."""
    return [path.read_text() for path in sorted(Path(sysconfig.get_path("stdlib")).glob("t*.py"))[:12]]
