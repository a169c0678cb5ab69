"""Pages of other sites, and names that are not this server's, are kept out."""

import pytest
from scripted_http import Client, ScriptedApp

from kensho.server.host_guard import host_name
from kensho.testing.loop import run_virtual

PATH = "/v1/chat/completions"
BODY = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8420", "kiosk-7", "kiosk-7.:80"])
def test_its_own_names_are_let_in(host: str) -> None:
    assert run_virtual(Client(ScriptedApp()).request("POST", PATH, BODY, host=host)).status == 200


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "localhost.evil.example", "localhost:x", "[localhost", "localhost@evil", "127.0.0.1", "[]"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_name_is_refused_on_every_path(host: str, method: str) -> None:
    app = ScriptedApp()
    for path in (PATH, "/health", "/nowhere"):
        client = run_virtual(Client(app).request(method, path, BODY, host=host))
        assert client.status == 421 and client.json["error"]["code"] == "host_not_allowed"
    assert app.asked == []


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("https://kiosk-7", 200),
        ("https://evil.example", 403),
        ("null", 403),
        ("x", 403),
    ],
)
def test_a_page_of_another_site_cannot_post_blindly(origin: str, status: int) -> None:
    client = run_virtual(Client(ScriptedApp()).request("POST", PATH, BODY, origin=origin))
    assert client.status == status
    assert not any(name.startswith("access-control") for name in client.headers)


@pytest.mark.parametrize(
    ("authority", "name"),
    [("a:80", "a"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("A.", "a"), ("", ""), ("a:b", ""), ("::1", ""),
     ("[::1]x", "")],
)  # fmt: skip
def test_a_name_is_found_without_its_port(authority: str, name: str) -> None:
    assert host_name(authority) == name


def test_unknown_paths_and_methods_have_the_same_shape_of_errors() -> None:
    nowhere = run_virtual(Client(ScriptedApp()).request("GET", "/v2/nowhere"))
    assert (nowhere.status, nowhere.json["error"]["code"]) == (404, "unknown_url")
    method = run_virtual(Client(ScriptedApp()).request("GET", PATH))
    assert (method.status, method.headers["allow"]) == (405, "POST")
