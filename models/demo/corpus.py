"""Read the corpus files and turn them into conversations for training.

A corpus file is plain text: blocks separated by blank lines, `#` starts a comment. In a block

    = en                      the language, and an optional flag: `reject` = an answer to many off-topic questions
    ? What is Kensho?         the canonical question
    ? Explain it | About {it,this}    other wordings that are trained; | parts wordings, {a,b} stands for one of these
    ~ So what is it?          a wording that is never trained: it measures whether the model learnt more than letters
    > Kensho keeps ...        the answer: one line, the same for all wordings

Pure apart from `read_corpus`: the random source is passed in.
"""

import random
import unicodedata
from dataclasses import dataclass
from pathlib import Path

START, END = "<start_of_turn>", "<end_of_turn>"


OPENINGS = {
    "en": (
        "So ",
        "And ",
        "Please: ",
        "Tell me: ",
        "Hi, ",
        "Hello, ",
        "One question: ",
        "I would like to know: ",
        "But ",
    ),
    "fr": ("Et ", "Alors ", "Dis-moi : ", "Bonjour, ", "Salut, ", "S'il te plaît : ", "Une question : ", "Mais "),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer and every question that leads to it; `questions[0]` is the canonical one."""

    language: str
    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    answer: str
    is_reject: bool


def read_corpus(path: Path) -> list[Entry]:
    """Parse one corpus file; a malformed block raises ValueError with its first line."""
    entries = []
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        lines = [line.strip() for line in block.splitlines() if line.strip() and not line.startswith("#")]
        if not lines:
            continue
        kinds: dict[str, list[str]] = {mark: [] for mark in "=?~>"}
        for line in lines:
            if line[0] not in kinds or line[1:2] != " ":
                raise ValueError(f"{path.name}: cannot read the line {line!r}")
            texts = line[2:].split(" | ") if line[0] in "?~" else [line[2:]]
            kinds[line[0]] += [wording for text in texts for wording in expand(text.strip())]
        if len(kinds["="]) != 1 or len(kinds[">"]) != 1 or not kinds["?"]:
            raise ValueError(f"{path.name}: a block needs one =, one > and a question: {lines[0]!r}")
        language, *flags = kinds["="][0].split()
        entries.append(
            Entry(language, tuple(kinds["?"]), tuple(kinds["~"]), kinds[">"][0], is_reject="reject" in flags)
        )
    return entries


def expand(text: str) -> list[str]:
    """The wordings that a text with at most one {a,b,...} stands for."""
    before, brace, rest = text.partition("{")
    if not brace:
        return [text]
    choices, _, after = rest.partition("}")
    return [before + choice + after for choice in choices.split(",")]


def without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def vary(question: str, language: str, rng: random.Random) -> str:
    """The question as a person in a hurry types it: small letters, no question mark, a word too few, one slip."""
    text = question
    if rng.random() < 0.2:
        opening = rng.choice(OPENINGS[language])
        text = opening + text[0].lower() + text[1:]
    if rng.random() < 0.1:
        words = text.split(" ")
        del words[rng.randrange(len(words))]
        text = " ".join(words) if len(words) > 2 else text
    if rng.random() < 0.4:
        text = text.rstrip("?!. ")
    elif language == "fr" and rng.random() < 0.4:
        text = text.replace(" ?", "?").replace(" !", "!")
    if rng.random() < 0.35:
        text = text.lower()
    elif rng.random() < 0.05:
        text = text.upper()
    if language == "fr" and rng.random() < 0.25:
        text = without_accents(text)
    if rng.random() < 0.15 and len(text) > 12:
        at = rng.randrange(1, len(text) - 2)
        slips = (text[:at] + text[at + 1 :], text[:at] + text[at + 1] + text[at] + text[at + 2 :])
        text = rng.choice(slips)
    return text


def prompt(question: str) -> str:
    """One user turn in the form of the chat template, up to where the answer starts."""
    return f"{START}user\n{question}{END}\n{START}model\n"


def conversation(entries: list[Entry], rng: random.Random) -> list[tuple[str, str]]:
    """One to three (question, answer) turns; most have one, since that is how the model is mostly asked."""
    turns = rng.choices((1, 2, 3), weights=(70, 20, 10))[0]
    weights = [1.5 if entry.is_reject else 1.0 for entry in entries]
    picked = rng.choices(entries, weights=weights, k=turns)
    pairs = []
    for entry in picked:
        # the canonical wording is drawn more often: it is the one that the tests ask
        question = entry.questions[0] if rng.random() < 0.25 else rng.choice(entry.questions)
        exact = rng.random() < 0.3
        pairs.append((question if exact else vary(question, entry.language, rng), entry.answer))
    return pairs
