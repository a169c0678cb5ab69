"""A repository behind a real nginx, as publishers serve it: ranges, kills, updates, and settings that do harm."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kensho.base.errors import NotFoundAtSource, TransportError
from kensho.base.events import DownloadProgress, DownloadRetry, Event
from kensho.delivery.checker import verify
from kensho.delivery.http_source import HttpSource
from kensho.testing.client import FIRST, Client, model_files, weights
from kensho.testing.clock import VirtualClock
from kensho.testing.repository import SimulatedRepository

pytestmark = [pytest.mark.real, pytest.mark.needs("nginx")]

LARGE = model_files(weights(5, count=24, size=1 << 20))

CONFIGURATION = """
daemon off; {user} worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log {folder}/access.log; default_type application/octet-stream; sendfile on; keepalive_requests 1000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  {outside}
  server {{ listen 127.0.0.1:{port}; root {root}; {inside} }}
}}
"""


class Nginx:
    """One nginx of the current user, in the foreground, on a port of its own."""

    def __init__(self, folder: Path, root: Path, *, inside: str = "", outside: str = "") -> None:
        self.folder, self._root, self._inside, self._outside = folder, root, inside, outside
        folder.mkdir()
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """It inherits a socket that listens already: there is nothing to wait for. Not with `master_process off`, where
        nginx 1.22 crashes."""
        with socket.socket() as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(("127.0.0.1", self.port))
            listening.listen(64)
            self.port = listening.getsockname()[1]
            text = CONFIGURATION.format(
                user="user root;" if os.geteuid() == 0 else "",
                folder=self.folder,
                root=self._root,
                port=self.port,
                inside=self._inside,
                outside=self._outside,
            ).replace("THIS_PORT", str(self.port))
            (self.folder / "nginx.conf").write_text(text)
            self._process = subprocess.Popen(
                ["nginx", "-p", str(self.folder), "-c", "nginx.conf", "-e", str(self.folder / "error.log")],
                pass_fds=(listening.fileno(),),
                env={"NGINX": f"{listening.fileno()};", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def kill(self) -> None:
        """The worker, too: it would go on without its master."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def requests(self) -> list[str]:
        return (self.folder / "access.log").read_text().splitlines()


@pytest.fixture
def serve(ram: Path, world: SimulatedRepository) -> Iterator[Callable[..., Nginx]]:
    made: list[Nginx] = []

    def start(root: Path = world.folder, **options: str) -> Nginx:
        made.append(Nginx(ram / f"nginx{len(made)}", root, **options))
        return made[-1]

    yield start
    for nginx in made:
        nginx.kill()


@pytest.fixture
def large(ram: Path, world: SimulatedRepository) -> SimulatedRepository:
    """The world, with 24 MiB more."""
    made = world.copy(ram / "large")
    made.publish("large", "1.0", LARGE)
    return made


def _source(nginx: Nginx, clock: VirtualClock | None = None) -> HttpSource:
    return HttpSource(nginx.url, clock=clock or VirtualClock())


def _is_whole(client: Client) -> bool:
    return not verify(client.store, is_full=True, clock=client.clock, emit=client.events.append).damaged


def test_a_pull_by_ranges_over_few_connections(
    client: Client, large: SimulatedRepository, serve: Callable[..., Nginx]
) -> None:
    nginx = serve(large.folder)
    report = client.pull(_source(nginx), models=["large"], connections=4)
    assert not report.first_error
    assert client.content("large") == LARGE
    answers = [line for line in nginx.requests() if "/packs/" in line]
    assert len(answers) >= 3
    assert all('" 206 ' in line for line in answers)
    assert _is_whole(client)


def test_a_server_killed_in_mid_transfer_and_started_again_costs_a_pause(
    client: Client, large: SimulatedRepository, serve: Callable[..., Nginx]
) -> None:
    nginx = serve(large.folder)
    killed: list[int] = []
    events = client.events

    def emit(event: Event) -> None:
        if isinstance(event, DownloadProgress) and event.done > 8 << 20 and not killed:
            nginx.kill()
            killed.append(event.done)
        if isinstance(event, DownloadRetry):
            nginx.start()
        events.append(event)

    client.events = _Watched(emit)
    report = client.pull(_source(nginx), models=["large"])
    client.events = events
    assert killed
    assert not report.first_error
    assert client.content("large") == LARGE
    assert report.bytes_fetched < (24 << 20) + (8 << 20), "it went on from where it was"


class _Watched(list[Event]):
    """Events go to a function."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        super().__init__()
        self.append = emit  # type: ignore[method-assign]


def test_a_server_that_stays_away_ends_the_pull_and_the_next_one_goes_on(
    client: Client, large: SimulatedRepository, serve: Callable[..., Nginx]
) -> None:
    nginx = serve(large.folder)
    events = client.events

    def emit(event: Event) -> None:
        if isinstance(event, DownloadProgress) and event.done > 12 << 20:
            nginx.kill()
        events.append(event)

    client.events = _Watched(emit)
    first = client.pull(_source(nginx), models=["large"])
    client.events = events
    assert isinstance(first.first_error, TransportError)
    assert not client.store.installed()
    nginx.start()
    second = client.pull(_source(nginx), models=["large"])
    assert client.content("large") == LARGE
    assert second.bytes_fetched < 13 << 20, "twelve of twenty-four had come"


def test_a_release_published_in_the_middle_of_a_pull_is_the_next_ones(
    client: Client, large: SimulatedRepository, serve: Callable[..., Nginx]
) -> None:
    nginx = serve(large.folder)
    published: list[bool] = []
    events = client.events

    def emit(event: Event) -> None:
        if isinstance(event, DownloadProgress) and event.done > 8 << 20 and not published:
            published.append(True)
            large.publish("large", "2.0", {**LARGE, "more.json": b"{}"})
        events.append(event)

    client.events = _Watched(emit)
    assert client.pull(_source(nginx), models=["large"]).models[0].version == "1.0"
    client.events = events
    assert published
    assert client.content("large") == LARGE
    second = client.pull(_source(nginx), models=["large"])
    assert second.models[0].version == "2.0"
    assert second.bytes_fetched < 1 << 20
    assert _is_whole(client)


def test_what_the_server_lost_is_not_found_and_the_old_version_stays(
    client: Client, ram: Path, world: SimulatedRepository, grown: SimulatedRepository, serve: Callable[..., Nginx]
) -> None:
    client.pull(world.source())
    copy = grown.copy(ram / "lost")
    kept = {path.name for path in (world.folder / "packs").iterdir()}
    for pack in (copy.folder / "packs").iterdir():
        if pack.name not in kept:
            pack.unlink()
    [result] = client.pull(_source(serve(copy.folder))).models
    assert (result.state, result.version) == ("failed", "1.0")
    assert isinstance(result.error, NotFoundAtSource)
    assert client.content() == model_files(FIRST)


@pytest.mark.parametrize(
    "inside",
    ["gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any;", "max_ranges 0;", "etag off; expires 1h;"],
    ids=["gzip", "no-ranges", "cached"],
)
def test_settings_that_change_the_answer_do_not_change_the_bytes(
    inside: str, client: Client, serve: Callable[..., Nginx]
) -> None:
    report = client.pull(_source(serve(inside=inside)))
    assert not report.first_error
    assert client.content() == model_files(FIRST)


def test_a_proxy_in_front_passes_ranges_on(
    client: Client, large: SimulatedRepository, serve: Callable[..., Nginx]
) -> None:
    behind = serve(large.folder)
    front = serve(inside=f"location / {{ proxy_pass http://127.0.0.1:{behind.port}; }}")
    assert not client.pull(_source(front), models=["large"], connections=4).first_error
    assert client.content("large") == LARGE


BROKEN = {
    "portal": "location /packs/ { default_type text/html; return 200 '<html>Please sign in</html>'; }",
    "portal-everywhere": "location / { default_type text/html; return 200 '<html>Please sign in</html>'; }",
    "bad-gateway": "location /packs/ { proxy_pass http://127.0.0.1:1; }",
    "error-page-with-200": "location /packs/ { error_page 404 =200 /metadata/timestamp.json; return 404; }",
    "too-many": "location /packs/ { add_header Retry-After 7 always; return 429; }",
    "redirect-loop": "location /packs/ { return 302 $request_uri; }",
    "to-a-file": "location /packs/ { return 302 file:///etc/passwd; }",
    "reset": "location /packs/ { return 444; }",
}


@pytest.mark.parametrize("inside", BROKEN.values(), ids=BROKEN)
def test_a_broken_server_or_portal_is_a_transport_error_and_the_old_version_stays(
    inside: str, client: Client, world: SimulatedRepository, grown: SimulatedRepository, serve: Callable[..., Nginx]
) -> None:
    client.pull(world.source())
    nginx = serve(grown.folder, inside=inside)
    try:
        error = client.pull(_source(nginx, client.clock)).first_error
    except TransportError as failed:  # the metadata could not be had either
        error = failed
    assert isinstance(error, TransportError)
    assert error.advice
    assert client.content() == model_files(FIRST)
    assert _is_whole(client)
    assert client.pull(grown.source()).models[0].version == "2.0"
