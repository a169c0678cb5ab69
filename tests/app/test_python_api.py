"""The Python API of the contract, as it is written there."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import kensho
from kensho.delivery.keys import keygen
from kensho.demo.stage import embedded_model, questions
from kensho.server.origin import Origin

pytestmark = pytest.mark.real

QUESTION = questions("1.0.0")[0]


@dataclass(frozen=True)
class Published:
    url: str
    root: str


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    from kensho.cli.main import main

    folder = tmp_path_factory.mktemp("origin")
    keygen(folder / "keys")
    source, repository = str(embedded_model() / "v1"), str(folder / "repository")
    argv = ["publish", source, "--model", "dialogue", "--version", "1.0.0", "--to", repository]
    assert main([*argv, "--keys", str(folder / "keys"), "--quiet"]) == 0
    with Origin(folder / "repository", port=0) as served:
        yield Published(served.url, str(folder / "repository" / "metadata" / "1.root.json"))


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE}


def test_three_lines_pull_the_model_and_answer(
    origin: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def three_lines() -> None:
        async with kensho.open(store=str(tmp_path / "s"), source=origin.url, root=origin.root) as app:
            async for token in app.generate("dialogue", QUESTION.question):
                print(token.text, end="")

    before = children()
    asyncio.run(three_lines())
    assert capsys.readouterr().out == QUESTION.answer
    assert children() == before


def test_blocking_calls_work_on_the_same_store(origin: Published, tmp_path: Path) -> None:
    store = str(tmp_path / "s")
    report = kensho.pull(["dialogue"], store=store, source=origin.url, root=origin.root)
    assert [(m.model, m.version, m.state) for m in report.models] == [("dialogue", "1.0.0", "updated")]
    assert [m.state for m in kensho.pull(store=store).models] == ["current"]
    assert kensho.verify(store=store, full=True).damaged == ()
    assert kensho.status(store=store).state == "ready"
    path = Path(store) / "versions" / "dialogue" / "1.0.0" / "tokenizer.json"
    path.chmod(0o644)
    path.write_bytes(bytes(path.stat().st_size))
    assert [(d.model, d.path) for d in kensho.verify(store=store).damaged] == [("dialogue", "tokenizer.json")]
    assert kensho.repair(store=store).repaired_chunks >= 1
    assert kensho.verify(store=store, full=True).damaged == ()


def test_leaving_a_stream_early_and_closing_leave_no_process(origin: Published, tmp_path: Path) -> None:
    async def leave_early() -> list[int]:
        ids = []
        async with kensho.open(store=tmp_path / "s", source=origin.url, root=origin.root) as app:
            async for token in app.generate("dialogue", QUESTION.question):
                ids.append(token.id)
                if len(ids) == 3:
                    break
            again = [token.id async for token in app.generate("dialogue", QUESTION.question)]
            assert again[:3] == ids
        return ids

    before = children()
    assert len(asyncio.run(leave_early())) == 3
    assert children() == before


@pytest.mark.parametrize("delay_s", [0.0, 0.2, 0.6, 1.2, 2.5])
def test_cancelling_at_any_moment_leaves_no_process(origin: Published, tmp_path: Path, delay_s: float) -> None:
    async def use() -> None:
        async with kensho.open(store=tmp_path / "s", source=origin.url, root=origin.root) as app:
            while True:
                async for _ in app.generate("dialogue", QUESTION.question):
                    pass

    async def cancel() -> None:
        task = asyncio.create_task(use())
        await asyncio.sleep(delay_s)  # real processes, real time: the moment is the point of this test
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    before = children()
    asyncio.run(cancel())
    assert children() == before


def test_a_killed_program_leaves_no_process(origin: Published, tmp_path: Path) -> None:
    program = (
        "import asyncio, os, signal, sys, kensho, psutil\n"
        "async def main():\n"
        f"    settings = dict(store={str(tmp_path / 's')!r}, source={origin.url!r}, root={origin.root!r})\n"
        "    async with kensho.open(**settings) as app:\n"
        f"        async for token in app.generate('dialogue', {QUESTION.question!r}):\n"
        "            print(*[c.pid for c in psutil.Process().children(recursive=True)], flush=True)\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env={**os.environ}
    )
    pids = [int(word) for word in done.stdout.split()]
    assert pids, done.stderr
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=5)
    assert not alive


def test_the_package_is_typed() -> None:
    assert (Path(kensho.__file__).parent / "py.typed").exists()
