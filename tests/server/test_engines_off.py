"""A person shuts both engines of a model: its fallback answers, nothing is lost, and it comes back. Real daemons."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from daemon_process import Daemon, kensho, running

from kensho.cli.main import main
from kensho.delivery.keys import keygen
from kensho.demo.stage import embedded_model

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models: big, whose publisher names demo to answer instead, and alone, without a fallback."""
    folder = tmp_path_factory.mktemp("two")
    keygen(folder / "keys")
    repository, store = folder / "repository", folder / "store"
    publish = ["publish", str(embedded_model() / "v1"), "--version", "1.0.0", "--to", str(repository), "--quiet"]
    publish += ["--keys", str(folder / "keys")]
    assert main([*publish, "--model", "demo"]) == 0
    assert main([*publish, "--model", "big", "--fallback", "demo"]) == 0
    assert main([*publish, "--model", "alone"]) == 0
    root = repository / "metadata" / "1.root.json"
    assert main(["init", "--from", repository.as_uri(), "--root", str(root), "--store", str(store), "--quiet"]) == 0
    assert main(["pull", "demo", "big", "alone", "--store", str(store), "--quiet"]) == 0
    assert main(["warm", "big", "alone", "--store", str(store), "--quiet"]) == 0
    return store


def ask(daemon: Daemon, model: str) -> tuple[int, dict[str, Any]]:
    body = {"model": model, "max_tokens": 3, "messages": [{"role": "user", "content": "Hello"}]}
    request = urllib.request.Request(f"{daemon.url}/v1/chat/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=30) as answered:
            return answered.status, json.loads(answered.read())["kensho"]
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]


def summary(store: Path, *argv: str) -> dict[str, Any]:
    done = kensho(store, "--json", *argv)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert told["code"] == done.returncode
    return told


def shut(store: Path, model: str) -> None:
    for engine in ("primary", "standby"):
        assert summary(store, "circuit", engine, "open", "--model", model)["state"] == "FORCED_OPEN"


def give_back(store: Path, model: str) -> None:
    for engine in ("primary", "standby"):
        assert summary(store, "circuit", engine, "auto", "--model", model)["ok"]


def graphs(store: Path) -> set[str]:
    return {path.parent.name for path in (store / "graphs").glob("*/header.json")}


def test_two_engines_that_a_person_shut_cost_a_model_nothing(store: Path) -> None:
    before = graphs(store)
    assert before
    with running(store) as daemon:
        assert ask(daemon, "big")[1]["model"] == "big"
        shut(store, "big")
        status, told = ask(daemon, "big")
        assert (status, told["model"], told["is_fallback_model"]) == (200, "demo", True)
        assert "primary is FORCED_OPEN" in told["reason"]
    with running(store) as daemon:
        status, told = ask(daemon, "big")
        assert (status, told["model"]) == (200, "demo"), "not loaded, and not loadable"
        known = summary(store, "status")
        assert (known["code"], known["state"]) == (3, "degraded")
        (big,) = [model for model in known["models"] if model["model"] == "big"]
        assert (big["state"], big["instead"]) == ("degraded", "model demo answers")
        assert "kensho circuit primary auto --model big" in big["ends"]
        give_back(store, "big")
        status, told = ask(daemon, "big")
        assert (status, told["model"], told["tier"]) == (200, "big", "mapped")
        assert summary(store, "status")["code"] == 0
    assert graphs(store) == before
    assert "graph.dropped" not in (store / "logs" / "kensho.jsonl").read_text()


def test_without_a_daemon_and_without_a_fallback_it_is_told_with_what_to_do(store: Path) -> None:
    before = graphs(store)
    shut(store, "alone")
    told = summary(store, "run", "alone", "Hello", "--max-tokens", "3")
    assert (told["code"], told["error"]) == (1, "engines_off")
    assert "kensho circuit ENGINE auto" in told["advice"]
    assert summary(store, "warm", "alone")["error"] == "engines_off"
    assert summary(store, "status")["code"] == 3
    checks = {check["name"]: check for check in summary(store, "doctor", "--no-network")["checks"]}
    assert not checks["engines"]["ok"] and "alone" in checks["engines"]["found"]
    with running(store) as daemon:
        status, error = ask(daemon, "alone")
        assert (status, error["code"]) == (502, "engines_off")
    give_back(store, "alone")
    assert summary(store, "run", "alone", "Hello", "--max-tokens", "3")["code"] == 0
    assert graphs(store) == before
