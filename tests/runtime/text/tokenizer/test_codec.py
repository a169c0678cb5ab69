"""A codec with tables: the same ids and texts as with the library, found by digests, given up where they fail."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kensho.base.clock import SystemClock
from kensho.base.errors import ConfigError, ModelError
from kensho.base.events import Event
from kensho.base.ids import Digest
from kensho.runtime.text.codec import TextCodec
from kensho.runtime.text.tokenizer import build, table_tokenizer
from kensho.runtime.text.tokenizer.build_folder import build_folder
from kensho.runtime.text.tokenizer.builder import TablesBuilder
from kensho.runtime.text.tokenizer.files import keep_reason, keep_tables, made_name, reason_against
from kensho.runtime.text.tokenizer.refuse import NotCovered

pytestmark = pytest.mark.real

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] | trim }}</turn>{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
PROMPTS = ["the quick fox", "  l'\u00e9t\u00e9 {{ 1 }} <eos>\n", "\u65e5\u672c\u8a9e", "", "\n", "<turn>x</turn>"]


def digests_of(folder: Path) -> dict[str, Digest]:
    return {file.name: Digest(hashlib.sha256(file.read_bytes()).hexdigest()) for file in folder.iterdir()}


@pytest.fixture
def make_model(tmp_path: Path, trained: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.setattr(build, "check_tables", lambda *_: None)  # it takes seconds, and has its own tests

    def make(kind: str = "gemma", **config: object) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        trained(kind).save(str(folder / "tokenizer.json"))
        special = {"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": TEMPLATE}
        (folder / "tokenizer_config.json").write_text(json.dumps(special | config))
        (folder / "config.json").write_text('{"vocab_size": 3000, "eos_token_id": 7}')
        return folder

    return make


def ship(folder: Path) -> dict[str, Digest]:
    (folder / "tokenizer.tables").write_bytes(build_folder(folder))
    return digests_of(folder)


@pytest.mark.parametrize("kind", ["gemma", "llama 2", "qwen", "gpt-2, prefix space"])
@pytest.mark.parametrize("adds", [True, False, None])
def test_prompts_and_answers_are_the_same_with_tables(kind: str, adds: bool | None, make_model: Any) -> None:
    folder = make_model(kind, **({} if adds is None else {"add_bos_token": adds}))
    library = TextCodec.load(folder)
    tables = TextCodec.load(folder, digests=ship(folder))
    assert (library.source, tables.source, tables.refused) == ("library", "tables", ())
    assert tables.stop_ids == library.stop_ids == (7, 1)
    for prompt in PROMPTS:
        for is_raw in (False, True):
            ids = tables.prompt_ids(prompt, is_raw=is_raw)
            assert ids == library.prompt_ids(prompt, is_raw=is_raw)
            streams = [codec.detokenizer(window=4) for codec in (tables, library)]
            pieces = [[*map(stream.push, ids), stream.finish()] for stream in streams]
            assert pieces[0] == pieces[1]
            assert "".join(pieces[0]) == tables.decode(ids) == library.decode(ids)
    talk = [{"role": role, "content": f"{role} \u00e9"} for role in ("user", "model", "user")]
    assert tables.chat_ids(talk) == library.chat_ids(talk)


def test_a_load_with_tables_imports_and_reads_nothing_heavy(make_model: Any) -> None:
    folder = make_model()
    digests = ship(folder)
    (folder / "tokenizer.json").unlink()  # not even opened
    program = (
        "import sys, json; from pathlib import Path; from kensho.runtime.text.codec import TextCodec;"
        "codec = TextCodec.load(Path(sys.argv[1]), digests=json.loads(sys.argv[2]));"
        "ids = codec.prompt_ids('Hello, l\\u00e9t\\u00e9 \\u65e5'); codec.decode(ids);"
        "print(json.dumps([codec.source, sorted({'tokenizers', 'jinja2', 'numpy', 'dataclasses'}"
        " & set(sys.modules))]))"
    )
    run = [sys.executable, "-c", program, str(folder), json.dumps(digests)]
    found = subprocess.run(run, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == ["tables", []]


def test_without_digests_nothing_says_that_tables_belong_here(make_model: Any) -> None:
    folder = make_model()
    ship(folder)
    assert TextCodec.load(folder).source == "library"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json", "chat_template.jinja"])
def test_tables_of_other_files_are_refused_by_name(name: str, make_model: Any) -> None:
    folder = make_model()
    digests = ship(folder) | {name: Digest("0" * 64)}
    codec = TextCodec.load(folder, digests=digests)
    assert codec.source == "library"
    assert codec.refused == ("tokenizer.tables: they were made for other files",)


def test_tables_made_here_are_found_and_damaged_ones_removed(make_model: Any, tmp_path: Path) -> None:
    folder, here = make_model(), tmp_path / "graphs"
    digests = digests_of(folder)
    data = build_folder(folder)
    keep_tables(data, digests, here)
    path = here / f"{made_name(digests)}.tables"
    assert TextCodec.load(folder, digests=digests, made_here=here).source == "tables"
    path.write_bytes(data[:5000])
    codec = TextCodec.load(folder, digests=digests, made_here=here)
    assert (codec.source, len(codec.refused), path.exists()) == ("library", 1, False)
    keep_tables(data, digests, here)
    path.chmod(0o666)
    assert "another user" in TextCodec.load(folder, digests=digests, made_here=here).refused[0]


def test_damage_found_while_encoding_costs_nobody_an_error(make_model: Any, tmp_path: Path) -> None:
    folder, here = make_model(), tmp_path / "graphs"
    digests = digests_of(folder)
    data = bytearray(build_folder(folder))
    expected = TextCodec.load(folder).prompt_ids("the quick fox")
    keep_tables(bytes(data), digests, here)
    path = here / f"{made_name(digests)}.tables"
    codec = TextCodec.load(folder, digests=digests, made_here=here)
    tables = codec._tokens._encoder._pieces._vocabulary._tables  # type: ignore[attr-defined]
    for name in ("vocab", "merges", "blob"):
        offset, size = tables._places[name]
        data[offset : offset + size] = os.urandom(size)
    with path.open("r+b") as file:
        file.write(data)
    assert codec.source == "tables"
    assert codec.prompt_ids("the quick fox") == expected
    assert codec.decode(expected)
    assert not path.exists()


def test_a_character_that_only_the_library_knows_goes_to_the_library(make_model: Any) -> None:
    folder = make_model("qwen")
    unassigned = next(chr(p) for p in range(0x870, 0x110000) if unicodedata.category(chr(p)) == "Cn")
    codec, library = TextCodec.load(folder, digests=ship(folder)), TextCodec.load(folder)
    assert codec.prompt_ids(f"a {unassigned} b") == library.prompt_ids(f"a {unassigned} b")


@pytest.mark.parametrize("prompt", ["\udcff", "x" * (10 << 20)], ids=["no text", "10 MB"])
def test_a_prompt_that_is_no_text_or_too_long_is_the_callers_error(prompt: str, make_model: Any) -> None:
    folder = make_model()
    with pytest.raises(ConfigError):
        TextCodec.load(folder, digests=ship(folder)).prompt_ids(prompt)


def test_a_tokenizer_that_does_not_fit_the_model_is_refused_in_words(make_model: Any) -> None:
    folder = make_model()
    (folder / "config.json").write_text('{"vocab_size": 2000}')
    with pytest.raises(ModelError, match=r"ids up to 2999, its config\.json says the model knows 2000"):
        TextCodec.load(folder)
    with pytest.raises(ModelError, match="ids up to"):
        build_folder(folder)


def test_builders_at_the_same_time_make_one_file_and_leave_nothing_else(make_model: Any, tmp_path: Path) -> None:
    folder, here, events = make_model(), tmp_path / "graphs", list[Event]()
    digests = digests_of(folder)
    builder = TablesBuilder(here, env={}, clock=SystemClock(), emit=events.append)
    assert builder.is_wanted(digests)

    async def both() -> None:
        await asyncio.gather(*(builder.build("m", "1", folder, digests) for _ in range(2)))

    asyncio.run(both())
    assert [path.name for path in here.iterdir()] == [f"{made_name(digests)}.tables"]
    assert not builder.is_wanted(digests)
    assert {event.fields()["outcome"] for event in events} == {"made"}
    assert TextCodec.load(folder, digests=digests, made_here=here).source == "tables"


def test_what_cannot_be_covered_is_remembered_with_its_reason(make_model: Any, tmp_path: Path) -> None:
    folder, here, events = make_model(), tmp_path / "graphs", list[Event]()
    document = json.loads((folder / "tokenizer.json").read_text())
    document["added_tokens"][0]["lstrip"] = True
    (folder / "tokenizer.json").write_text(json.dumps(document))
    digests = digests_of(folder)
    builder = TablesBuilder(here, env={}, clock=SystemClock(), emit=events.append)
    asyncio.run(builder.build("m", "1", folder, digests))
    assert "lstrip" in reason_against(digests, here)
    assert not builder.is_wanted(digests)
    assert [event.fields()["outcome"] for event in events] == ["not possible"]


def test_a_build_that_is_cancelled_leaves_no_process_and_no_file(make_model: Any, tmp_path: Path) -> None:
    folder, here = make_model(), tmp_path / "graphs"
    digests = digests_of(folder)
    builder = TablesBuilder(here, env={}, clock=SystemClock(), emit=lambda event: None)

    async def cancelled() -> None:
        task = asyncio.create_task(builder.build("m", "1", folder, digests))
        while not list(here.glob("*.lock")):  # noqa: ASYNC110 - the child says nothing else
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in children if b"build_child" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert not list(here.glob("*.tables"))
    assert builder.is_wanted(digests)


def test_a_build_that_never_ends_well_is_begun_three_times(make_model: Any, tmp_path: Path) -> None:
    folder, here, events = make_model(), tmp_path / "graphs", list[Event]()
    digests = digests_of(folder)
    (folder / "tokenizer.json").write_text("{")  # what raises here could be a kernel that kills there
    builder = TablesBuilder(here, env={}, clock=SystemClock(), emit=events.append)
    for _ in range(3):
        assert builder.is_wanted(digests)
        asyncio.run(builder.build("m", "1", folder, digests))
    assert not builder.is_wanted(digests)
    assert [event.fields()["outcome"] for event in events] == ["failed"] * 3


def test_tables_made_with_a_later_unicode_than_this_pythons_are_refused(
    make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model("qwen")
    digests = ship(folder)
    monkeypatch.setattr(table_tokenizer, "unicodedata", SimpleNamespace(unidata_version="9.0.0"))
    assert "made with Unicode" in TextCodec.load(folder, digests=digests).refused[0]


def test_tables_are_for_little_endian_machines(make_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model()
    digests = ship(folder)
    monkeypatch.setattr(sys, "byteorder", "big")
    assert "big-endian" in TextCodec.load(folder, digests=digests).refused[0]


def test_tables_of_other_bytes_than_the_stores_are_not_kept(make_model: Any, tmp_path: Path) -> None:
    folder, here, events = make_model(), tmp_path / "graphs", list[Event]()
    digests = digests_of(folder) | {"tokenizer.json": Digest("0" * 64)}
    builder = TablesBuilder(here, env={}, clock=SystemClock(), emit=events.append)
    asyncio.run(builder.build("m", "1", folder, digests))
    assert builder.is_wanted(digests)


def test_a_reason_is_bounded_and_files_are_kept_within_a_number(tmp_path: Path) -> None:
    digests = {"tokenizer.json": Digest("1" * 64)}
    keep_reason("x" * 10_000, digests, tmp_path)
    assert len(reason_against(digests, tmp_path)) == 1000
    for number in range(20):
        keep_tables(b"x", {"tokenizer.json": Digest(f"{number:064}")}, tmp_path)
    assert len(list(tmp_path.glob("*.tables"))) == 16


def test_a_folder_without_tokenizer_has_no_tables(tmp_path: Path) -> None:
    with pytest.raises(NotCovered, match=r"no tokenizer\.json"):
        build_folder(tmp_path)
