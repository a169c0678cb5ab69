"""`kensho status`: how things stand, in one sentence and then in detail. Never uses the network."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kensho.base.errors import Damaged, KenshoError, StorageError
from kensho.base.units import size_text
from kensho.cli import exits
from kensho.cli.arguments import Arguments
from kensho.cli.main import Context, Result

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kensho.app.status import ModelStatus, Status


def add_arguments(arguments: Arguments) -> None:
    del arguments  # nothing to choose


def run(context: Context) -> Result:
    output = context.output
    with context.open_app(has_log=False) as app:
        status = app.status()
    if status.state not in ("damaged", "storage-missing"):  # those are told as errors
        output.data(status.sentence)
    for model in status.models:
        for line in _describe(model):
            output.data(f"  {line}")
    for line in _describe_store(status):
        output.data(f"  {line}")
    error: KenshoError | None = None
    if status.state == "damaged":
        error = Damaged(status.sentence, advice="run kensho repair")
    elif status.state == "storage-missing":
        error = StorageError(status.sentence, advice="run kensho init --from URL --root ROOT.json")
    code = exits.DEGRADED if status.state == "degraded" else exits.exit_code(error) if error else exits.OK
    return Result(code, status.as_json(), error)


def _describe(model: "ModelStatus") -> "Iterator[str]":
    facts = [f"{model.model} {model.version or '-'}: {model.state}"]
    if model.version:
        facts.append(size_text(model.size_bytes))
    if model.verified_at_s is not None:
        facts.append(f"verified {_time(model.verified_at_s)}")
    if model.pinned:
        facts.append(f"held at {model.pinned}")
    if model.previous:
        facts.append(f"{model.previous} is ready to go back to")
    yield ", ".join(facts)
    if model.reason:
        yield f"  {model.reason}"
    if model.since_s is not None:
        yield f"  since {_time(model.since_s)}; instead: {model.instead}"
    if model.ends:
        yield f"  ends with: {model.ends}"


def _describe_store(status: "Status") -> "Iterator[str]":
    for number, check in enumerate(status.checks):
        yield f"{'last check' if number == 0 else 'before it'}: {check.kind}, {_time(check.at_wall_s)}"
    if status.updates:
        word = "expired" if status.updates.is_expired else "good until"
        yield f"metadata: {word} {_time(status.updates.expires_at_s)}"


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
