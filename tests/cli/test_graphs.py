"""`kensho warm` and `kensho graphs` on a real store."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from kensho.cli.main import main
from kensho.delivery.disk import RealDisk
from kensho.delivery.keys import keygen
from kensho.delivery.store import Store
from kensho.demo.stage import embedded_model, questions
from kensho.runtime.text.tokenizer.files import made_name

pytestmark = pytest.mark.real

Run = Callable[..., dict[str, object]]


@pytest.fixture
def kensho(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command on a store with the model `demo`; returns its summary."""
    keygen(tmp_path / "keys")
    repository = tmp_path / "repository"
    argv = ["publish", str(embedded_model() / "v1"), "--model", "demo", "--version", "1.0.0"]
    assert main([*argv, "--to", str(repository), "--keys", str(tmp_path / "keys"), "--quiet"]) == 0

    def run(*command: str) -> dict[str, object]:
        capsys.readouterr()
        code = main(["--json", "--store", str(tmp_path / "store"), *command])
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert summary["code"] == code
        return dict(summary)

    run("init", "--from", f"file://{repository}", "--root", str(repository / "metadata" / "1.root.json"))
    run("pull", "demo")
    return run


def test_what_is_warmed_is_listed_found_by_the_next_program_and_cleared(kensho: Run, tmp_path: Path) -> None:
    assert kensho("graphs", "list")["graphs"] == []
    (warmed,) = kensho("warm", "demo", "demo")["graphs"]  # type: ignore[misc]
    assert (warmed["model"], warmed["tier"], warmed["load_source"]) == ("demo", "mapped", "compile")
    question = questions("1.0.0")[0]
    answer = kensho("run", "demo", question.question)
    assert (answer["text"], answer["load_source"]) == (question.answer, "disk")
    listed = kensho("graphs", "list")
    (graph,) = listed["graphs"]  # type: ignore[misc]
    assert graph["used_by"] == ["demo 1.0.0"]
    assert graph["form"] in graph["speeds_us"]
    assert listed["failed"] == []
    assert {"key", "model", "version", "form", "size_bytes", "last_use", "state", "engine_version"} <= set(graph)
    assert (graph["key"], graph["version"], graph["state"]) == (warmed["key"], "1.0.0", "ready")
    statistics = listed["statistics"]
    assert (statistics["hits"], statistics["misses"]) == (1, 1)  # type: ignore[index]
    assert statistics["compile_seconds"] > statistics["find_seconds"] > 0  # type: ignore[index]
    assert kensho("graphs", "prune")["removed"] == 0
    (tmp_path / "store" / "graphs" / warmed["key"] / "header.json").write_bytes(b"junk")
    assert [g["state"] for g in kensho("graphs", "list")["graphs"]] == ["damaged"]  # type: ignore[union-attr]
    pruned = kensho("graphs", "prune")
    assert (pruned["removed"], pruned["graphs"]) == (1, [])
    kensho("warm", "demo")
    cleared = kensho("graphs", "clear")
    assert cleared["removed"] == 1
    assert cleared["bytes_freed"] == pytest.approx(graph["size_bytes"], abs=16)  # the header says how long it took


def test_tokenizer_tables_go_with_the_last_version_that_they_fit(kensho: Run, tmp_path: Path) -> None:
    graphs = tmp_path / "store" / "graphs"
    with closing(Store.open(tmp_path / "store", disk=RealDisk())) as store:
        (release,) = store.state.releases()
    ours = made_name({file.path: file.used for file in release.files if file.used})
    for name in (ours, gone := f"tokenizer-{'0' * 32}"):
        (graphs / f"{name}.tables").write_bytes(b"12345")
    listed = {tables["name"]: tables["used_by"] for tables in kensho("graphs", "list")["tables"]}  # type: ignore[attr-defined]
    assert listed == {ours: ["demo 1.0.0"], gone: []}
    pruned = kensho("graphs", "prune")
    assert (pruned["removed"], pruned["tables_removed"], pruned["bytes_freed"]) == (0, 1, 5)
    assert [path.stem for path in graphs.glob("*.tables")] == [ours]
    assert kensho("graphs", "clear")["tables_removed"] == 1
    assert list(graphs.glob("*.tables")) == []


def test_a_model_that_cannot_be_warmed_does_not_keep_the_others_cold(kensho: Run) -> None:
    summary = kensho("warm", "absent", "demo")
    assert (summary["ok"], summary["error"], summary["failed"]) == (False, "not_installed", ["absent"])
    assert [graph["model"] for graph in summary["graphs"]] == ["demo"]  # type: ignore[union-attr]


def test_an_action_that_does_not_exist_is_a_usage_error(kensho: Run) -> None:
    assert kensho("graphs", "burn")["code"] == 2


def test_the_list_on_a_machine_without_a_store_is_empty_and_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--store", str(tmp_path / "none"), "graphs", "list"]) == 0
    assert "0 graphs" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
