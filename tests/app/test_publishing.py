"""What is made for a release: tables of the tokenizer, or the reason why there are none."""

import json
import shutil
from pathlib import Path

import pytest

from kensho.app.publishing import made_files
from kensho.demo.stage import embedded_model
from kensho.runtime.text.tokenizer.tables import FILE_NAME, Tables


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(embedded_model() / "v1", tmp_path / "model"))


@pytest.mark.real
def test_tables_are_made_from_the_folder_and_are_gone_with_the_block(model: Path) -> None:
    with made_files(model) as made:
        path = made.files[FILE_NAME]
        assert path is not None
        assert made.size_bytes == path.stat().st_size
        assert made.reason == ""
        assert set(Tables.open(path).meta["sources"]) == {  # type: ignore[call-overload]
            "tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json",
        }  # fmt: skip
    assert not path.exists()


@pytest.mark.real
@pytest.mark.parametrize(
    ("change", "reason"),
    [({"normalizer": {"type": "Lowercase"}}, "normaliser Lowercase"), ({"model": 3}, "cannot be used")],
    ids=["not covered", "broken"],
)
def test_a_release_without_tables_says_why(change: dict[str, object], reason: str, model: Path) -> None:
    path = model / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with made_files(model) as made:
        assert made.files == {FILE_NAME: None}
        assert reason in made.reason


@pytest.mark.real
def test_tables_of_the_release_before_are_shipped_again_only_if_they_fit(model: Path) -> None:
    with made_files(model) as made:
        path = made.files[FILE_NAME]
        assert path is not None
        data = path.read_bytes()
    with made_files(model, lambda: data) as again:
        path = again.files[FILE_NAME]
        assert path is not None
        assert (path.read_bytes(), again.seconds) == (data, 0.0)
    with made_files(model, lambda: data[:-1]) as anew:
        assert anew.seconds > 0
    (model / "tokenizer_config.json").write_text("{}")
    with made_files(model, lambda: data) as other:
        path = other.files[FILE_NAME]
        assert path is not None
        assert path.read_bytes() != data


def test_a_model_without_tokenizer_needs_none(tmp_path: Path) -> None:
    with made_files(tmp_path) as made:
        assert (made.files, made.reason) == ({FILE_NAME: None}, "")
