"""The files of the demonstration model: what the rest of Kensho may rely on (its answers: the tests of the runtime)."""

import json
import struct
from pathlib import Path

import jinja2
import pytest
from tokenizers import Tokenizer

import kensho.demo

MODEL = Path(kensho.demo.__file__).parent / "model"
V1_FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def read_json(*parts: str):
    return json.loads(MODEL.joinpath(*parts).read_text(encoding="utf-8"))


def tensors_of(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    table = json.loads(data[8 : 8 + length])
    table.pop("__metadata__", None)
    body = data[8 + length :]
    return {
        name: (entry["dtype"], tuple(entry["shape"]), body[slice(*entry["data_offsets"])])
        for name, entry in table.items()
    }


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "v1" / "tokenizer.json"))


def test_everything_together_stays_under_three_megabytes():
    assert sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file()) <= 3_000_000
    assert (MODEL / "v2" / "changes.safetensors").stat().st_size <= 500_000


def test_version_1_is_a_complete_gemma3_folder():
    assert {path.name for path in (MODEL / "v1").iterdir()} == V1_FILES
    config = read_json("v1", "config.json")
    assert (config["model_type"], config["dtype"]) == ("gemma3_text", "bfloat16")
    tensors = tensors_of(MODEL / "v1" / "model.safetensors")
    assert {dtype for dtype, _, _ in tensors.values()} == {"BF16"}
    assert tensors["model.embed_tokens.weight"][1] == (config["vocab_size"], config["hidden_size"])
    assert len(tensors) == 2 + 13 * config["num_hidden_layers"]
    assert len(config["layer_types"]) == config["num_hidden_layers"]


def test_version_2_changes_only_tensors_of_version_1():
    before = tensors_of(MODEL / "v1" / "model.safetensors")
    after = tensors_of(MODEL / "v2" / "changes.safetensors")
    assert after
    for name, (dtype, shape, data) in after.items():
        assert (dtype, shape) == before[name][:2]
        assert data != before[name][2]


@pytest.mark.parametrize("name", ["questions.json", "v2/questions.json"])
def test_enough_questions_in_both_languages(name: str):
    questions = read_json(name)
    assert len(questions) >= 30
    for language, wanted in (("en", 20), ("fr", 10)):
        assert sum(q["language"] == language for q in questions) >= wanted
    assert all(q.keys() == {"question", "answer", "language"} for q in questions)


def test_only_version_2_claims_to_know_what_is_new():
    new = {"What is new in version 2?", "Quoi de neuf dans la version 2 ?"}
    assert new <= {q["question"] for q in read_json("v2/questions.json")}
    assert not new & {q["question"] for q in read_json("questions.json")}


def test_the_tokenizer_says_every_answer_unchanged(tokenizer: Tokenizer):
    answers = [q["answer"] for q in read_json("questions.json") + read_json("v2/questions.json")]
    lengths = []
    for answer in answers:
        ids = tokenizer.encode(answer, add_special_tokens=False).ids
        lengths.append(len(ids))
        assert tokenizer.decode(ids) == answer
    # a stream must be long enough to be cut in the middle
    assert sum(length >= 60 for length in lengths) >= 10


@pytest.mark.parametrize("text", ["", " ", "  two  spaces", "日本語 🦊", "a\tb\r\nc", "L'été à Nîmes", "<eos>"])
def test_the_tokenizer_survives_any_text(tokenizer: Tokenizer, text: str):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.token_to_id("<unk>") not in ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_special_tokens_have_the_ids_of_the_configuration(tokenizer: Tokenizer):
    assert [tokenizer.token_to_id(t) for t in ("<pad>", "<eos>", "<bos>", "<unk>")] == [0, 1, 2, 3]
    stops = read_json("v1", "generation_config.json")["eos_token_id"]
    assert stops == [tokenizer.token_to_id("<eos>"), tokenizer.token_to_id("<end_of_turn>")]


def test_the_chat_template_is_that_of_gemma():
    config = read_json("v1", "tokenizer_config.json")
    template = jinja2.Environment(autoescape=False).from_string(config["chat_template"])
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": " Bye "},
    ]
    assert template.render(messages=messages, bos_token="<bos>", add_generation_prompt=True) == (
        "<bos><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    )
