"""The demonstration model, compiled by Kensho, answers its questions word for word (greedy, int8)."""

import asyncio
from pathlib import Path

import pytest

from kensho.app import GenerateOptions, Kensho
from kensho.base.clock import SystemClock
from kensho.delivery.keys import keygen
from kensho.demo.stage import embedded_model, questions
from kensho.settings import load_settings

pytestmark = pytest.mark.real


def test_at_least_twenty_questions_are_answered_word_for_word(tmp_path: Path) -> None:
    from kensho.cli.main import main

    keygen(tmp_path / "keys")
    argv = ["publish", str(embedded_model() / "v1"), "--model", "demo", "--version", "1.0.0", "--quiet"]
    assert main([*argv, "--to", str(tmp_path / "repository"), "--keys", str(tmp_path / "keys")]) == 0

    async def ask_all() -> list[str]:
        wrong = []
        settings = load_settings({"store": str(tmp_path / "store"), "standby": "on_demand"})
        async with Kensho(settings, clock=SystemClock()) as app:
            app.init(f"file://{tmp_path / 'repository'}", (tmp_path / "repository/metadata/1.root.json").read_bytes())
            app.pull(["demo"])
            for question in questions("1.0.0"):
                answer = app.generate("demo", question.question, GenerateOptions())
                text = "".join([token.text async for token in answer])
                if text != question.answer:
                    wrong.append(f"{question.question} -> {text}")
        return wrong

    wrong = asyncio.run(ask_all())
    assert len(questions("1.0.0")) >= 20
    assert wrong == []
