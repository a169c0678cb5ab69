"""The steps of the story that are about bytes: publish, pull, damage, update."""

import asyncio

from kensho.app import GenerateOptions
from kensho.app.publishing import FILE_NAME, MAX_FILE_BYTES, made_files
from kensho.base.events import ChunkCorrupt, ChunkRepaired, CompileFinished
from kensho.base.units import size_text
from kensho.delivery.keys import keygen
from kensho.delivery.published_file import read_published
from kensho.delivery.publisher import PublishReport, publish
from kensho.demo.second_version import copy_model, make_second_version
from kensho.demo.stage import FIRST, MODEL, SECOND, Stage, check, embedded_model, questions


def publish_first(stage: Stage) -> str:
    """1. A real, small model folder becomes a signed repository, served over HTTP."""
    copy_model(embedded_model() / "v1", stage.source)
    keygen(stage.keys)
    report = _publish(stage, FIRST)
    url = stage.open_origin()
    check(report.chunks > report.files, "the model was cut into chunks")
    stage.say(f"{report.files} files cut into {report.chunks} chunks, signed with Ed25519, served at {url}")
    return f"{size_text(report.bytes_source)} -> {size_text(report.bytes_packed)} in packs"


def pull_first(stage: Stage) -> str:
    """2. A fresh store that trusts one root file downloads and verifies everything."""
    with stage.open_app() as app:
        app.init(stage.origin_url, (stage.repository / "metadata" / "1.root.json").read_bytes())
        check(app.status().state == "empty", "nothing is visible before it is all there")
        report = app.pull([MODEL])
        check([m.state for m in report.models] == ["updated"], "the pull brought the model")
        full = app.verify(is_full=True)
        check(not full.damaged and full.bytes_hashed > 0, "every chunk on disk is the publisher's")
        check(app.status().state == "ready", "the store is ready")
    stage.say(f"{full.chunks} chunks verified, {size_text(report.bytes_fetched)} fetched in {report.requests} requests")
    return f"{size_text(report.bytes_fetched)} in {report.seconds:.2f} s"


def damage_and_repair(stage: Stage) -> str:
    """6. Zeros in the middle of a stored file are found before the model is used; one chunk is replaced."""
    path = stage.settings.store / "versions" / MODEL / FIRST / "model.safetensors"
    good = path.read_bytes()
    stat = path.stat()
    middle = len(good) // 2
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(middle)
        file.write(bytes(512))
    stage.say("512 bytes in the middle of model.safetensors were zeroed behind Kensho's back")
    check(path.read_bytes() != good and path.stat().st_size == stat.st_size, "the file is damaged")

    question = questions(FIRST)[0]
    text = asyncio.run(_ask(stage, question.question))
    found, mended = stage.heard(ChunkCorrupt), stage.heard(ChunkRepaired)
    check(len(found) == 1 and len(mended) == 1, "exactly one damaged chunk was found and mended")
    check(path.read_bytes() == good, "the file is the publisher's again")
    check(text == question.answer, "the answer after the repair is right")
    repaired = mended[0]
    stage.say(f"the next start found it and fetched chunk {repaired.chunk} again ({size_text(repaired.size_bytes)})")
    return f"1 chunk of {size_text(repaired.size_bytes)} replaced"


def update_and_roll_back(stage: Stage) -> str:
    """9. The second version: only changed chunks travel. Then back to the first, from this disk."""
    make_second_version(stage.source, embedded_model() / "v2" / "changes.safetensors", stage.second_source)
    _publish(stage, SECOND)
    stage.open_origin()
    new = {q.question: q.answer for q in questions(SECOND)}
    news = next(q for q in new if "version 2" in q)
    with stage.open_app() as app:
        report = app.pull([MODEL])
        check(report.models[0].version == SECOND, "version 2 is installed")
        check(report.bytes_reused > report.bytes_fetched, "most bytes were already here")
    text = asyncio.run(_ask(stage, news))
    check(text == new[news], "version 2 knows what is new")
    stage.say(f"version {SECOND}: {size_text(report.bytes_fetched)} fetched, {size_text(report.bytes_reused)} reused")
    stage.say(f'"{news}" {text}')
    stage.close_origin()

    stage.events.clear()
    with stage.open_app() as app:
        check(app.rollback(MODEL) == FIRST, f"version {FIRST} is back")
    old = questions(FIRST)[0]
    check(asyncio.run(_ask(stage, old.question)) == old.answer, f"version {FIRST} answers")
    check(not stage.heard(CompileFinished), f"the graph of version {FIRST} was still there")
    stage.say(f"rolled back to {FIRST} with the origin stopped; its graph was still in the cache")
    return f"update {size_text(report.bytes_fetched)}, of {size_text(report.bytes_fetched + report.bytes_reused)}"


def _publish(stage: Stage, version: str) -> PublishReport:
    source = stage.source if version == FIRST else stage.second_source
    with stage.open_app() as app, made_files(source, lambda: _tables_of_before(stage, version)) as made:
        if made.seconds:
            stage.say(f"its tokenizer was compiled into tables of {size_text(made.size_bytes)} in {made.seconds:.1f} s")
        return publish(
            source,
            stage.repository,
            stage.keys,
            model=MODEL,
            version=version,
            made=made.files,
            changelog=f"version {version} of the demonstration model",
            now=app.now(),
            emit=app.emit,
        )


def _tables_of_before(stage: Stage, version: str) -> bytes | None:
    return None if version == FIRST else read_published(stage.repository, MODEL, FILE_NAME, max_bytes=MAX_FILE_BYTES)


async def _ask(stage: Stage, question: str) -> str:
    async with stage.open_app() as app:
        answer = app.generate(MODEL, question, GenerateOptions())
        async for _ in answer:
            pass
        return answer.record.text
