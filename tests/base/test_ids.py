import pytest
from hypothesis import given
from hypothesis import strategies as st

from kensho.base.errors import TrustError, UsageError
from kensho.base.ids import check_file_path, check_file_paths, check_name, digest_of, parse_digest


@pytest.mark.parametrize("text", ["", "../x", "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n", "g" * 64, None, 7])
def test_digest_is_exactly_64_lower_case_hex_digits(text: object) -> None:
    with pytest.raises(TrustError):
        parse_digest(text)


def test_digest_of_bytes_parses() -> None:
    assert parse_digest(digest_of(b"")) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


BAD_PATHS = [
    "", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/.", "a\\b", "c:x", "nul", "COM1.txt", "a/con", "x.", "x ",
    "a\0b", "a\nb", "e\u0301", "x" * 256, "a*", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("path", BAD_PATHS)
def test_paths_that_some_system_could_misread_are_refused(path: str) -> None:
    with pytest.raises(TrustError):
        check_file_path(path)


@pytest.mark.parametrize("paths", [["a", "A"], ["a", "a/b"], ["straße", "STRASSE"], ["x", "x"]])
def test_sets_of_paths_that_clash_are_refused_as_a_whole(paths: list[str]) -> None:
    with pytest.raises(TrustError):
        check_file_paths(paths)


def test_ordinary_paths_pass() -> None:
    check_file_paths(["config.json", "model.safetensors", "onnx/model.onnx", "onnx/model.onnx.data"])


@given(st.text(max_size=80))
def test_any_text_is_a_name_or_a_clear_refusal(text: str) -> None:
    try:
        assert check_name(text, "model name") == text
    except UsageError as error:
        assert error.advice
