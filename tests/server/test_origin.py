"""The static server serves files of its folder, whole or by range, and nothing else."""

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from kensho.base.errors import ConfigError
from kensho.server.origin import Origin

pytestmark = pytest.mark.real

BODY = bytes(range(256)) * 8


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Origin]:
    folder = tmp_path / "repo"
    (folder / "packs").mkdir(parents=True)
    (folder / "packs" / "a.pack").write_bytes(BODY)
    (folder / "b.json").write_bytes(b"{}")
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "out").symlink_to(tmp_path / "secret")
    with Origin(folder) as server:
        yield server


def _ask(
    origin: Origin, path: str, headers: dict[str, str] | None = None, method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", origin.port, timeout=5)
    connection.request(method, path, headers=headers or {})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, dict(response.headers), body


def test_a_file_is_served_whole_with_length_and_etag(origin: Origin) -> None:
    status, headers, body = _ask(origin, "/packs/a.pack")
    assert (status, body) == (200, BODY)
    assert headers["Content-Length"] == str(len(BODY))
    assert headers["ETag"]
    assert origin.bytes_sent == len(BODY)


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("0-0", 0, 1), ("5-9", 5, 10), ("2000-", 2000, 2048), ("-10", 2038, 2048), ("2000-9999", 2000, 2048)],
)
def test_one_range_is_answered_with_206(origin: Origin, asked: str, start: int, end: int) -> None:
    status, headers, body = _ask(origin, "/packs/a.pack", {"Range": f"bytes={asked}"})
    assert (status, body) == (206, BODY[start:end])
    assert headers["Content-Range"] == f"bytes {start}-{end - 1}/2048"


@pytest.mark.parametrize("asked", ["bytes=2048-", "bytes=9-5", "bytes=-0"])
def test_a_range_outside_the_file_is_416(origin: Origin, asked: str) -> None:
    status, headers, body = _ask(origin, "/packs/a.pack", {"Range": asked})
    assert (status, headers["Content-Range"], body) == (416, "bytes */2048", b"")


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "lines=1-2", "bytes=-", "bytes=x-y"])
def test_odd_ranges_are_ignored(origin: Origin, asked: str) -> None:
    assert _ask(origin, "/packs/a.pack", {"Range": asked})[::2] == (200, BODY)


@pytest.mark.parametrize("path", ["/", "/packs", "/packs/", "/none", "/../secret", "/%2e%2e/secret", "/out", "/%00"])
def test_nothing_but_files_of_the_folder_is_served(origin: Origin, path: str) -> None:
    status, _, body = _ask(origin, path)
    assert (status, body) == (404, b"")


def test_head_has_no_body_and_other_methods_are_refused(origin: Origin) -> None:
    status, headers, body = _ask(origin, "/packs/a.pack", method="HEAD")
    assert (status, headers["Content-Length"], body) == (200, "2048", b"")
    assert _ask(origin, "/packs/a.pack", method="PUT")[0] == 501


def test_a_connection_serves_many_requests_and_ends_when_the_origin_closes(origin: Origin) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", origin.port, timeout=5)
    for _ in range(3):
        connection.request("GET", "/b.json")
        assert connection.getresponse().read() == b"{}"
    assert connection.sock is not None
    assert origin.requests == 3
    origin.close()
    origin.close()
    with pytest.raises((http.client.HTTPException, OSError)):
        connection.request("GET", "/b.json")
        connection.getresponse()
    connection.close()


def test_a_port_in_use_or_a_missing_folder_is_a_sentence_with_advice(origin: Origin, tmp_path: Path) -> None:
    for folder, port in ((tmp_path, origin.port), (tmp_path / "none", 0), (tmp_path, 99999)):
        with pytest.raises(ConfigError) as caught:
            Origin(folder, port)
        assert caught.value.advice
