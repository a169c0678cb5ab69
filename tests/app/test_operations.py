"""A machine that nobody watches, in real processes: damage while it answers, fallback models, other processes."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import kensho
from kensho.base.errors import NotInstalled
from kensho.base.events import CheckFinished, ChunkRepaired, Event
from kensho.cli.main import main
from kensho.demo.second_version import copy_model
from kensho.demo.stage import embedded_model, questions
from kensho.server.origin import Origin

pytestmark = pytest.mark.real

QUESTION = questions("1.0.0")[0]


@dataclass
class Site:
    """A publisher's folder and keys, served."""

    folder: Path
    url: str

    @property
    def root(self) -> str:
        return str(self.folder / "repository" / "metadata" / "1.root.json")

    def publish(self, model: str, version: str, *more: str, source: Path | None = None) -> None:
        argv = ["publish", str(source or embedded_model() / "v1"), "--model", model, "--version", version, "--to"]
        argv += [str(self.folder / "repository"), "--keys", str(self.folder / "keys"), "--quiet", *more]
        assert main(argv) == 0


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "site"
    assert main(["keygen", str(folder / "keys"), "--quiet"]) == 0
    Site(folder, "").publish("dialogue", "1.0.0")
    with Origin(folder / "repository", port=0) as served:
        yield Site(folder, served.url)


def _spoil(path: Path) -> None:
    """A byte in the middle, in place, as a bad disk or program does."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(path.stat().st_size // 2)
        file.write(bytes([byte[0] ^ 1]))


def test_damage_under_a_stream_is_mended_while_the_stream_goes_on(site: Site, tmp_path: Path) -> None:
    """The engine reads its mapped graph; the delivered file is damaged, found, and replaced by a rename."""
    store = tmp_path / "s"

    async def use() -> None:
        async with kensho.open(store=store, source=site.url, root=site.root, tier="mapped") as app:
            undisturbed = [token.id async for token in app.generate("dialogue", QUESTION.question)]
            pid = app.engine_pids("dialogue")["primary"]
            weights = store / "versions" / "dialogue" / "1.0.0" / "model.safetensors"
            good, ids = weights.read_bytes(), []
            answer = app.generate("dialogue", QUESTION.question)
            async for token in answer:
                ids.append(token.id)
                if len(ids) == 3:
                    reader = weights.open("rb")
                    inode = weights.stat().st_ino
                    _spoil(weights)
                    bad = weights.read_bytes()
                    report = await asyncio.to_thread(app.verify, is_full=True)
                    assert [damage.path for damage in report.damaged] == ["model.safetensors"]
                    mended = await asyncio.to_thread(app.repair)
                    assert (mended.repaired_chunks, mended.unrepaired) == (1, ())
                    assert weights.stat().st_ino != inode, "a new file, by rename"
                    assert reader.read() == bad, "who reads the old file sees no change in place"
                    reader.close()
            assert ids == undisturbed
            assert answer.record.failovers == 0
            assert app.engine_pids("dialogue")["primary"] == pid, "its engine was not touched"
            assert weights.read_bytes() == good
            assert app.verify(is_full=True).damaged == ()

    asyncio.run(use())


def test_an_open_application_scrubs_finds_and_mends_by_itself(site: Site, tmp_path: Path) -> None:
    store, events = tmp_path / "s", list[Event]()
    weights = store / "versions" / "dialogue" / "1.0.0" / "model.safetensors"

    async def use() -> None:
        settings = {"store": store, "source": site.url, "root": site.root, "scrub": True, "scrub_period_s": 4.0}
        async with kensho.open(**settings) as app:  # type: ignore[arg-type]
            mended, passed = asyncio.Event(), asyncio.Event()
            loop = asyncio.get_running_loop()

            def listen(event: Event) -> None:
                events.append(event)
                if isinstance(event, ChunkRepaired):
                    loop.call_soon_threadsafe(mended.set)
                if isinstance(event, CheckFinished) and event.kind == "scrub" and mended.is_set():
                    loop.call_soon_threadsafe(passed.set)

            app.listen(listen)
            first = [token.id async for token in app.generate("dialogue", QUESTION.question)]
            good = weights.read_bytes()
            _spoil(weights)
            second = [token.id async for token in app.generate("dialogue", QUESTION.question)]
            await asyncio.wait_for(mended.wait(), 30)
            assert weights.read_bytes() == good
            assert second == first
            await asyncio.wait_for(passed.wait(), 30)
            assert app.verify(is_full=True).damaged == ()
            assert "scrub" in {check.kind for check in app.status().checks}

    before = {child.pid for child in psutil.Process().children(recursive=True)}
    asyncio.run(use())
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before


def test_a_model_that_cannot_be_had_is_answered_for_by_its_fallback_and_the_exit_code_says_so(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "s")
    packs = set((site.folder / "repository" / "packs").iterdir())
    copy_model(embedded_model() / "v1", tmp_path / "expert")
    weights = tmp_path / "expert" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-400_000] + bytes(byte ^ 1 for byte in data[-400_000:]))
    site.publish("expert", "1.0.0", "--optional", "--fallback", "dialogue", source=tmp_path / "expert")
    for pack in set((site.folder / "repository" / "packs").iterdir()) - packs:
        pack.unlink()
    assert main(["init", "--store", store, "--from", site.url, "--root", site.root]) == 0
    assert main(["pull", "--store", store, "dialogue", "expert", "--quiet"]) == 3
    assert main(["status", "--store", store]) == 3
    said = capsys.readouterr().out
    assert "expert -: degraded" in said and "instead: model dialogue answers" in said and "since" in said
    argv = ["run", "--store", store, "expert", QUESTION.question, "--no-network", "--quiet"]
    assert main(argv) == 3
    assert QUESTION.answer in capsys.readouterr().out

    async def use() -> None:
        async with kensho.open(store=store) as app:
            answer = app.generate("expert", QUESTION.question)
            text = "".join([token.text async for token in answer])
            assert (text, answer.record.model, answer.record.is_fallback_model) == (QUESTION.answer, "dialogue", True)
            with pytest.raises(NotInstalled):
                async for _ in app.generate("unknown", QUESTION.question):
                    pass

    asyncio.run(use())


def test_gc_never_takes_a_version_that_another_process_serves(site: Site, tmp_path: Path) -> None:
    """Two versions later the old one is still served, its engine is killed, and a new one opens the same files."""
    program = (
        "import asyncio, os, signal, sys, kensho\n"
        "async def main():\n"
        "    store, source, root, question = sys.argv[1:5]\n"
        "    more = dict(standby='on_demand', allow_faults=True)\n"
        "    async with kensho.open(store=store, source=source, root=root, **more) as app:\n"
        "        async for token in app.generate('dialogue', question): pass\n"
        "        app.arm_fault('dialogue', 'primary', 'slow')\n"
        "        answer, is_first = app.generate('dialogue', question), True\n"
        "        async for token in answer:\n"
        "            if is_first:\n"
        "                is_first = False\n"
        "                print('serving', flush=True)\n"
        "                sys.stdin.readline()\n"
        "                os.kill(app.engine_pids('dialogue')['primary'], signal.SIGKILL)\n"
        "        print(answer.record.version, answer.record.failovers, answer.record.text, flush=True)\n"
        "        sys.stdin.readline()\n"
        "asyncio.run(main())\n"
    )
    store = tmp_path / "s"
    argv = [sys.executable, "-c", program, str(store), site.url, site.root, QUESTION.question]
    server = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ}, bufsize=1
    )
    assert server.stdin and server.stdout
    try:
        assert server.stdout.readline() == "serving\n"
        for version in ("2.0.0", "3.0.0"):
            site.publish("dialogue", version)
            assert main(["pull", "--store", str(store), "--quiet"]) == 0
        assert main(["gc", "--store", str(store), "--quiet"]) == 0
        assert (store / "versions" / "dialogue" / "1.0.0" / "model.safetensors").exists()
        server.stdin.write("\n")
        version, failovers, text = server.stdout.readline().rstrip("\n").split(" ", 2)
        assert (version, int(failovers) >= 1, text) == ("1.0.0", True, QUESTION.answer)
        server.stdin.write("\n")
        assert server.wait(30) == 0
    finally:
        if server.poll() is None:
            os.kill(server.pid, signal.SIGKILL)
        server.communicate()
    assert main(["gc", "--store", str(store), "--quiet"]) == 0
    assert not (store / "versions" / "dialogue" / "1.0.0").exists()
    assert kensho.verify(store=store, full=True).damaged == ()


def test_closing_ends_the_scrub_and_its_thread(site: Site, tmp_path: Path) -> None:
    async def use() -> None:
        async with kensho.open(store=tmp_path / "s", source=site.url, root=site.root) as app:
            await asyncio.to_thread(app.pull, ["dialogue"])
        async with kensho.open(store=tmp_path / "s", scrub=True, scrub_period_s=2.0) as app:
            passed, loop = asyncio.Event(), asyncio.get_running_loop()

            def listen(event: Event) -> None:
                if isinstance(event, CheckFinished) and event.kind == "scrub":
                    loop.call_soon_threadsafe(passed.set)

            app.listen(listen)
            await asyncio.wait_for(passed.wait(), 30)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("scrub")]

    asyncio.run(use())
    assert kensho.verify(store=tmp_path / "s", full=True).damaged == ()
