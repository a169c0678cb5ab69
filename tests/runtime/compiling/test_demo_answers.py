"""The demonstration model, compiled to int8 on this machine, answers its questions word for word."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import kensho.demo
from kensho.base.clock import SystemClock
from kensho.runtime.cache.header import KeyFields
from kensho.runtime.compiling.stages import compile_model
from kensho.runtime.engine.session import Session, Tier
from kensho.runtime.graph.raw_graph import build_raw

pytestmark = pytest.mark.real
FOLDER = Path(kensho.demo.__file__).parent / "model"
LONGEST = 200


@pytest.fixture(scope="module")
def graphs(machine_key: KeyFields, tmp_path_factory: pytest.TempPathFactory) -> dict[Tier, Path]:
    compiled, raw = tmp_path_factory.mktemp("demo-int8"), tmp_path_factory.mktemp("demo-raw")
    compile_model(
        FOLDER / "v1",
        compiled,
        key=machine_key,
        model="demo",
        version="1",
        clock=SystemClock(),
        progress=lambda *_: None,
    )
    build_raw(FOLDER / "v1", raw)
    return {"mapped": compiled, "raw": raw}


def _say(session: Session, tokenizer: Tokenizer, question: str) -> str:
    prompt = f"<bos><start_of_turn>user\n{question}<end_of_turn>\n<start_of_turn>model\n"
    stops = {tokenizer.token_to_id(token) for token in ("<end_of_turn>", "<eos>")}
    session.rewind(0)
    logits = session.append(tokenizer.encode(prompt, add_special_tokens=False).ids)
    ids: list[int] = []
    while (token := int(logits.argmax())) not in stops and len(ids) < LONGEST:
        ids.append(token)
        logits = session.append([token])
    return tokenizer.decode(ids)


@pytest.mark.parametrize("tier", ["mapped", "raw"])
def test_the_demonstration_model_answers_word_for_word(tier: Tier, graphs: dict[Tier, Path]) -> None:
    questions = json.loads((FOLDER / "questions.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(FOLDER / "v1" / "tokenizer.json"))
    session = Session.load(graphs[tier], FOLDER / "v1", tier=tier, max_context=512, threads=1)
    wrong = [entry["question"] for entry in questions if _say(session, tokenizer, entry["question"]) != entry["answer"]]
    assert len(questions) >= 20
    assert not wrong
