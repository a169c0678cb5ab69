import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from kensho.base.errors import ConfigError, ModelError
from kensho.runtime.text.codec import TextCodec
from kensho.runtime.text.detokenizer import Detokenizer, style_of

WORDS = [
    "the quick brown fox, l'été déjà vu où «ça» coûte 10 €",
    "日本語のテスト 👩‍👩‍👧 emoji",
    "  two  spaces\n\tx",
] * 3
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)


def fallback(decoder: decoders.Decoder, mark: str = "\u2581") -> Tokenizer:
    """A BPE in SentencePiece's style: byte tokens for what the alphabet lacks."""
    basic = [*SPECIAL, *(f"<0x{i:02X}>" for i in range(256)), mark, *map(chr, range(33, 127)), "é", "▁▁"]
    merges = [("t", "h"), ("th", "e"), (mark, "the"), ("q", "u"), (mark, mark), (mark, "é")]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*basic, *(a + b for a, b in merges)]))}
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", mark)
    made.decoder = decoder
    made.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return made


def byte_level() -> Tokenizer:
    """A BPE in GPT-2's style, learnt from a few words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False),
    )
    made.add_tokens(["Ünïcode"])
    return made


def word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2, ".": 3, "do": 4, "n't": 5}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece()
    return made


GEMMA = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
TOKENIZERS = {
    "gemma": fallback(decoders.Sequence(GEMMA)),
    "llama": fallback(decoders.Sequence([*GEMMA, decoders.Strip(" ", 1, 0)])),
    "stripping more": fallback(decoders.Sequence([*GEMMA, decoders.Strip(" ", 3, 0)])),
    "metaspace": fallback(decoders.Metaspace()),
    "nested": fallback(decoders.Sequence([decoders.Sequence(GEMMA[:2]), decoders.Fuse()])),
    "byte level": byte_level(),
    "word piece": word_piece(),
    "after fuse": fallback(decoders.Sequence([*GEMMA, decoders.Replace("e t", "E-T")])),
    "none": fallback(decoders.Fuse()),
}


def save(tokenizer: Tokenizer, folder: Path, **files: object) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module", params=TOKENIZERS)
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec.load(save(TOKENIZERS[request.param], tmp_path_factory.mktemp("tokenizer")))


def stream(codec: TextCodec, ids: list[int], window: int) -> list[str]:
    pieces = codec.detokenizer(window=window)
    return [*[pieces.push(token) for token in ids], pieces.finish()]


@settings(max_examples=30, deadline=None)
@given(
    ids=st.lists(st.integers(0, 420) | st.integers(5, 40) | st.integers(255, 275), max_size=60),
    window=st.integers(1, 9),
)
def test_the_pieces_of_any_ids_are_the_text_of_all_of_them(codec: TextCodec, ids: list[int], window: int) -> None:
    pieces = stream(codec, ids, window)
    assert "".join(pieces) == codec.decode(ids)
    "".join(pieces).encode()  # valid text: no half of a character


@settings(max_examples=20, deadline=None)
@given(text=st.text(max_size=40) | st.sampled_from(WORDS), window=st.integers(1, 9))
def test_the_pieces_of_any_text_are_its_decoding(codec: TextCodec, text: str, window: int) -> None:
    ids = codec.prompt_ids(text)
    assert "".join(stream(codec, ids, window)) == codec.decode(ids)


@pytest.mark.parametrize("name", ["gemma", "llama", "metaspace", "byte level"])
def test_ordinary_text_comes_token_by_token(name: str, tmp_path: Path) -> None:
    codec = TextCodec.load(save(TOKENIZERS[name], tmp_path))
    ids = codec.prompt_ids("the quick the quick the the quick")
    pieces = stream(codec, ids, 4)
    assert pieces[-1] == ""
    assert sum(1 for piece in pieces if piece) >= len(ids) - 1


@pytest.mark.parametrize("name", ["gemma", "byte level"])
def test_a_character_of_several_tokens_comes_when_it_is_whole(name: str, tmp_path: Path) -> None:
    codec = TextCodec.load(save(TOKENIZERS[name], tmp_path))
    ids = codec.prompt_ids("a\U0001f9a9b")
    assert len(ids) > 4
    assert [piece for piece in stream(codec, ids, 4) if piece] in (["a", "\U0001f9a9b"], ["a", "\U0001f9a9", "b"])


def test_a_long_answer_costs_a_window_a_token_not_the_whole(tmp_path: Path) -> None:
    codec = TextCodec.load(save(TOKENIZERS["gemma"], tmp_path))
    lengths = []
    tokens = codec._tokens
    pieces = Detokenizer(lambda ids: lengths.append(len(ids)) or codec.decode(ids), tokens.kind_of, tokens.style)
    for token in codec.prompt_ids("the quick fox " * 200):
        pieces.push(token)
    assert max(lengths) < 60


@pytest.mark.parametrize(
    ("decoder", "style"),
    [
        (None, "unknown"),
        ({"type": "CTC"}, "unknown"),
        ({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Replace"}]}, "unknown"),
        ({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}, "fallback"),
        ({"type": "ByteLevel"}, "bytes"),
    ],
)
def test_a_decoder_that_is_not_understood_is_not_streamed(decoder: dict[str, object] | None, style: str) -> None:
    assert style_of(decoder) == style


def test_a_decoder_that_the_library_itself_fails_on_is_refused(tmp_path: Path) -> None:
    # tokenizers 0.23 panics when a text is shorter than what is to be dropped at its end.
    codec = fallback(decoders.Sequence([*GEMMA, decoders.Strip(" ", 0, 2)]))
    with pytest.raises(ModelError, match="end of a text"):
        TextCodec.load(save(codec, tmp_path))


def chat(folder: Path, **config: object) -> TextCodec:
    return TextCodec.load(save(TOKENIZERS["gemma"], folder, tokenizer_config={"bos_token": "<bos>", **config}))


def test_a_question_is_put_into_the_models_own_form(tmp_path: Path) -> None:
    codec = chat(tmp_path, chat_template=TEMPLATE, add_bos_token=True)
    tokenizer = TOKENIZERS["gemma"]
    expected = tokenizer.encode("<bos><turn>user\nhi {{ 1 }}<turn>model\n", add_special_tokens=False).ids
    assert codec.prompt_ids("  hi {{ 1 }}\n") == expected
    assert expected.count(tokenizer.token_to_id("<bos>")) == 1


def test_the_template_of_a_file_of_its_own_comes_first_and_a_list_has_a_default(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "D{{ messages[0].content }}"}]
    codec = chat(tmp_path, chat_template=named)
    assert codec.decode(codec.prompt_ids("q")) == "Dq"
    (tmp_path / "chat_template.jinja").write_text("F{{ messages[0].content }}")
    assert codec.decode(TextCodec.load(tmp_path).prompt_ids("q")) == "Fq"


@pytest.mark.parametrize("adds", [True, False, None])
@pytest.mark.parametrize("has_processor", [True, False])
def test_a_raw_prompt_begins_with_bos_as_the_tokenizer_wants(
    adds: bool | None, has_processor: bool, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_str(TOKENIZERS["gemma"].to_str())
    if has_processor:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    config = {"bos_token": {"content": "<bos>"}, "chat_template": TEMPLATE}
    config |= {} if adds is None else {"add_bos_token": adds}
    codec = TextCodec.load(save(tokenizer, tmp_path, tokenizer_config=config))
    ids = codec.prompt_ids("the", is_raw=True)
    begins = adds is True or (adds is None and has_processor)
    assert (ids[0] == 2, len(ids)) == (begins, 1 + begins)


def test_stop_ids_are_all_that_any_file_names(tmp_path: Path) -> None:
    codec = TextCodec.load(
        save(
            TOKENIZERS["gemma"],
            tmp_path,
            generation_config={"eos_token_id": [1, 4]},
            config={"eos_token_id": 7},
            tokenizer_config={"eos_token": "<eos>"},
        )
    )
    assert codec.stop_ids == (1, 4, 7)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% include '/etc/passwd' %}",
        "{{ messages[0].content.no.such.thing }}",
        "{% if %}",
        "{{ raise_exception('only tools here') }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "x" * 300_000,
    ],
    ids=["endless", "escape", "include", "undefined", "syntax", "raises", "zero", "changes", "recursion", "huge"],
)
def test_a_bad_template_is_one_clear_error(template: str, tmp_path: Path) -> None:
    codec = chat(tmp_path, chat_template=template)
    with pytest.raises(ModelError, match="chat template") as caught:
        codec.prompt_ids("hi")
    assert "--raw-prompt" in caught.value.advice
    assert codec.prompt_ids("the", is_raw=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b'{"version":"1.0"}'),
        ("tokenizer_config.json", b"["),
        ("tokenizer_config.json", b"[" * 100_000),
        ("generation_config.json", b'{"eos_token_id": "x"}'),
        ("generation_config.json", b'{"eos_token_id": [%s]}' % b",".join(b"%d" % i for i in range(99))),
        ("config.json", b"\xff"),
    ],
)
def test_a_broken_file_is_one_clear_error(name: str, content: bytes, tmp_path: Path) -> None:
    save(TOKENIZERS["gemma"], tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        TextCodec.load(tmp_path)
    assert caught.value.advice


def test_a_folder_without_tokenizer_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        TextCodec.load(tmp_path)


@pytest.mark.parametrize("prompt", ["\udcff", "x" * (1 << 20) + "x"], ids=["no text", "too long"])
def test_a_prompt_that_is_no_text_is_the_callers_error(prompt: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        chat(tmp_path, chat_template=TEMPLATE).prompt_ids(prompt)


def test_a_length_in_the_file_never_cuts_a_prompt(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(TOKENIZERS["gemma"].to_str())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=90)
    codec = TextCodec.load(save(tokenizer, tmp_path))
    assert len(codec.prompt_ids("abcdefgh")) == 8


def test_a_conversation_is_put_into_the_models_own_form(tmp_path: Path) -> None:
    codec = chat(tmp_path, chat_template=TEMPLATE)
    messages = [("user", "hi"), ("assistant", "the"), ("user", "again")]
    expected = "<bos><turn>user\nhi<turn>assistant\nthe<turn>user\nagain<turn>model\n"
    ids = codec.chat_ids([{"role": role, "content": content} for role, content in messages])
    assert ids == TOKENIZERS["gemma"].encode(expected, add_special_tokens=False).ids
    assert codec.chat_ids([{"role": "user", "content": "hi"}]) == codec.prompt_ids("hi")


@pytest.mark.parametrize("template", [None, "{{ raise_exception('roles must alternate') }}", "{{ messages[0].no.no }}"])
def test_a_conversation_that_the_template_does_not_take_is_the_callers_error(
    template: str | None, tmp_path: Path
) -> None:
    two = [{"role": "user", "content": "hi"}, {"role": "user", "content": "hi"}]
    with pytest.raises(ConfigError, match="template"):
        chat(tmp_path, chat_template=template).chat_ids(two)
