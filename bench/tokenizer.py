"""Compiled tokenizer tables beside the `tokenizers` library: load, build, encode, memory, each against its bar.

    python bench/tokenizer.py [--rounds 15] [--work FOLDER]

Three tokenizers: the 262k-entry one of data/make_gemma.py (random merges), and two of 50k entries that are trained
here: byte-level with Llama 3's pattern, and in Gemma's style with letters and signs apart, as SentencePiece does.
Texts, all in halves (one trained with, one measured): English is the language reference that Python ships, code its
library; the other scripts are translations of programs in /usr/share/locale, and made-up words where there are none.

Each round encodes texts that were not seen before with both, in turns; figures are medians of CPU time, so that a busy
machine hurts less, and the ratio is that of the medians. Every list of ids is compared. Memory is the growth of
RssAnon in a process of its own.
"""

import argparse
import gc
import json
import os
import random
import struct
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from harness import ROOT, print_bar, print_machine
from kensho.base.ids import Digest, digest_of
from kensho.runtime.text.codec import TextCodec
from kensho.runtime.text.library_tokenizer import LibraryTokenizer

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
MARK = "\u2581"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
LANGUAGES = ("zh_CN", "ja", "ko", "ru", "ar", "th", "el", "fr", "de", "vi", "he")
WORDS = 1000
PER_LANGUAGE = 400_000
"""Characters: what two loads of training and measuring need."""


# --- texts ---


def english() -> list[str]:
    """Whole pages, in an order that mixes their subjects."""
    from pydoc_data import topics

    pages = [topics.topics[name] for name in sorted(topics.topics)]
    random.Random(2).shuffle(pages)
    return pages


def code() -> list[str]:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    random.Random(3).shuffle(files)
    return [file.read_text(errors="replace") for file in files[:120]]


def scripts() -> dict[str, list[str]]:
    found = {language: _translations(language) for language in LANGUAGES}
    return {name: texts for name, texts in found.items() if sum(map(len, texts)) > PER_LANGUAGE // 4} or _made_up()


def _translations(language: str) -> list[str]:
    texts: list[str] = []
    for path in sorted(Path(f"/usr/share/locale/{language}/LC_MESSAGES").glob("*.mo")):
        data = path.read_bytes()
        if data[:4] != b"\xde\x12\x04\x95":
            continue
        count, _, table = struct.unpack_from("<III", data, 8)
        for number in range(1, count):
            length, at = struct.unpack_from("<II", data, table + 8 * number)
            texts.append(data[at : at + length].decode(errors="replace").replace("\0", "\n"))
    random.Random(1).shuffle(texts)
    return texts


def _made_up() -> dict[str, list[str]]:
    """Words of random letters, a few of them very frequent."""
    alphabets = {
        "cyrillic": (0x430, 32, " "),
        "han": (0x4E00, 900, ""),
        "kana": (0x3041, 80, ""),
        "thai": (0xE01, 46, ""),
    }
    made = {}
    for name, (first, count, space) in alphabets.items():
        rng = random.Random(name)
        words = ["".join(chr(first + rng.randrange(count)) for _ in range(rng.randint(1, 6))) for _ in range(4000)]
        made[name] = [
            space.join(words[min(int(rng.paretovariate(0.8)) - 1, 3999)] for _ in range(30)) + ". " for _ in range(4000)
        ]
    return made


def chunks(texts: Sequence[str], count: int, *, words: bool) -> list[str]:
    """`count` texts of 1 000 words, or, where words are not told apart by spaces, of 6 000 characters."""
    joined = "\n".join(texts)
    if words:
        parts = joined.split(" ")
        return [" ".join(parts[at : at + WORDS]) for at in range(0, len(parts) - WORDS, WORDS)][:count]
    return [joined[at : at + 6 * WORDS] for at in range(0, len(joined) - 6 * WORDS, 6 * WORDS)][:count]


# --- tokenizers ---


def make_folders(work: Path, training: list[str]) -> dict[str, Path]:
    folders = {name: work / name for name in ("262k random merges", "50k byte-level", "50k gemma style")}
    makers: dict[str, Callable[[], str]] = {
        "262k random merges": lambda: json.dumps(_make_gemma().tokenizer(262_144, 0), ensure_ascii=False),
        "50k byte-level": lambda: _byte_level(training),
        "50k gemma style": lambda: _gemma_style(training),
    }
    for name, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "tokenizer.json").exists():
            print(f"making the tokenizer {name} ...", flush=True)
            (folder / "tokenizer.json").write_text(makers[name]())
        (folder / "config.json").write_text('{"eos_token_id": 1}')
        (folder / "tokenizer_config.json").write_text('{"bos_token": "<bos>", "add_bos_token": true}')
    return folders


def _make_gemma():  # type: ignore[no-untyped-def]
    import importlib.util

    spec = importlib.util.spec_from_file_location("make_gemma", ROOT / "bench" / "data" / "make_gemma.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _byte_level(training: list[str]) -> str:
    made = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), last])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=50_000, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    made.train_from_iterator(training, trainer)
    return made.to_str()


def _gemma_style(training: list[str]) -> str:
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Replace(" ", MARK)
    apart = Regex(rf"{MARK}*\p{{L}}+|\p{{N}}|{MARK}*[^{MARK}\p{{L}}\p{{N}}]+|{MARK}+")
    steps = [pre_tokenizers.Split(MARK, "merged_with_next"), pre_tokenizers.Split(apart, "isolated")]
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=50_000, special_tokens=tokens, show_progress=False, limit_alphabet=4000)
    made.train_from_iterator(training, trainer)
    document = json.loads(made.to_str())
    like = _make_gemma().tokenizer(400, 0)
    for name in ("normalizer", "pre_tokenizer", "decoder", "added_tokens"):
        document[name] = like[name]
    document["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    return json.dumps(document, ensure_ascii=False)


# --- measurements ---

BUILD = """
import sys, time, resource
from pathlib import Path
start = time.perf_counter()
from kensho.runtime.text.tokenizer.build_folder import build_folder
data = build_folder(Path(sys.argv[1]))
wall = time.perf_counter() - start
used = resource.getrusage(resource.RUSAGE_SELF)
(Path(sys.argv[1]) / "tokenizer.tables").write_bytes(data)
print(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, len(data))
"""
MEMORY = """
import json, re, sys
from pathlib import Path
from kensho.runtime.text.codec import TextCodec
from kensho.runtime.text.library_tokenizer import LibraryTokenizer
import tokenizers
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
texts = json.loads(Path(sys.argv[3]).read_text())
TextCodec.load  # everything is imported before the first look
before = anonymous()
if sys.argv[2] == "tables":
    codec = TextCodec.load(Path(sys.argv[1]), digests=json.loads(sys.argv[4]))
    assert codec.source == "tables", codec.refused
    encode = lambda text: codec.prompt_ids(text, is_raw=True)
else:
    library = LibraryTokenizer.load(Path(sys.argv[1]))
    encode = lambda text: library.encode(text, is_whole=True)
loaded = anonymous()
for text in texts:
    encode(text)
print(loaded - before, anonymous() - before)
"""


def digests_of(folder: Path) -> dict[str, Digest]:
    return {file.name: digest_of(file.read_bytes()) for file in folder.iterdir() if file.is_file()}


def output_of(program: str, *arguments: object) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], check=True, capture_output=True, text=True
    )
    return [float(word) for word in done.stdout.split()]


def milliseconds(act: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - start_s)


def evict(path: Path) -> None:
    """Out of the page cache, which keeps what is mapped."""
    gc.collect()
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_load(name: str, folder: Path, rounds: int) -> None:
    digests = digests_of(folder)

    def load() -> None:
        codec = TextCodec.load(folder, digests=digests)
        assert codec.source == "tables", codec.refused

    def first_prompt() -> None:
        TextCodec.load(folder, digests=digests).prompt_ids("Tell me a story about sixteen words.", is_raw=True)

    load()
    warm = median(milliseconds(load) for _ in range(rounds))
    cold, first = [], []
    for found, act in ((cold, load), (first, first_prompt)):
        for _ in range(rounds):
            evict(folder / "tokenizer.tables")
            found.append(milliseconds(act))
    library = median(milliseconds(lambda: LibraryTokenizer.load(folder)) for _ in range(5))
    print_bar(f"{name}: load, warm page cache", warm, 2, "ms")
    print_bar(f"{name}: load, cold page cache", median(cold), 15, "ms")
    print(f"      load and a first short prompt, cold: {median(first):.1f} ms; the library loads in {library:.0f} ms")


def measure_encode(name: str, folder: Path, what: str, texts: list[str], bar: float) -> None:
    codec, library = TextCodec.load(folder, digests=digests_of(folder)), LibraryTokenizer.load(folder)
    ours, theirs, first = [], [], 0.0
    for number, text in enumerate(texts):
        found: dict[str, list[int]] = {}
        turns = [
            (ours, "tables", lambda text=text: codec.prompt_ids(text, is_raw=True)),
            (theirs, "library", lambda text=text: [2, *library.encode(text, is_whole=True)]),
        ]
        for times, key, act in turns if number % 2 else reversed(turns):
            start_s = time.process_time()
            found[key] = act()
            times.append(time.process_time() - start_s)
        assert found["tables"] == found["library"], "the ids differ"
        first = first or ours[0] / theirs[0]
    ratio = median(ours) / median(theirs)
    print_bar(f"{name}: encode {what}", ratio, bar, "x the library's time")
    print(
        f"      {len(texts)} texts: {1000 * median(ours):.2f} ms, library {1000 * median(theirs):.2f} ms; "
        f"first of the process {first:.1f} x"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench" / "tokenizer", help="kept between runs")
    args = parser.parse_args()
    print_machine("tokenizers")
    pages, programs, other = english(), code(), scripts()
    halves = {name: (texts[::2], texts[1::2]) for name, texts in other.items()}
    training = [*pages[::2], *programs[::2], *(" ".join(first)[:PER_LANGUAGE] for first, _ in halves.values())]
    print(f"scripts: {', '.join(halves)}; {'translations of programs' if 'ja' in halves else 'made-up words'}")
    folders = make_folders(args.work.absolute(), training)
    texts = {
        "English, 1 000 words": (chunks(pages[1::2], args.rounds, words=True), 1.5),
        "code, 1 000 words": (chunks(programs[1::2], args.rounds, words=True), 1.5),
        **{
            f"{name}, 6 000 characters": (chunks(["".join(second)], args.rounds, words=False), 3.0)
            for name, (_, second) in halves.items()
        },
    }
    memory_texts = args.work / "texts.json"
    memory_texts.write_text(json.dumps([text for found, _ in texts.values() for text in found[:3]]))
    for name, folder in folders.items():
        print(f"\n{name}: tokenizer.json of {(folder / 'tokenizer.json').stat().st_size / 1e6:.1f} MB")
        wall, cpu, peak, size = output_of(BUILD, folder)
        print_bar(f"{name}: build, CPU of its process", cpu, 10, "s")
        print(f"      wall {wall:.1f} s, {peak / 1e6:.0f} MB at most; the tables have {size / 1e6:.1f} MB")
        measure_load(name, folder, args.rounds)
        for what, (found, bar) in texts.items():
            measure_encode(name, folder, what, found, bar)
        digests = json.dumps(digests_of(folder))
        loaded, used = output_of(MEMORY, folder, "tables", memory_texts, digests)
        _, library = output_of(MEMORY, folder, "library", memory_texts, digests)
        print_bar(f"{name}: own memory after {3 * len(texts)} texts of all kinds", used / 1e6, 10, "MB")
        print(f"      {loaded / 1e6:.1f} MB after the load; the library {library / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
