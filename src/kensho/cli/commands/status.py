"""`kensho status`: how things stand, in one sentence and then in detail. Never uses the network."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kensho.base.errors import Damaged, KenshoError, StorageError
from kensho.base.structs import as_dict
from kensho.base.units import size_text
from kensho.cli import exits
from kensho.cli.arguments import Arguments
from kensho.cli.commands.circuit import describe_circuit
from kensho.cli.context import Context, Result

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kensho.app import Kensho
    from kensho.app.activity import LoadedModel
    from kensho.app.remembered import KnownCircuit
    from kensho.app.status import ModelStatus, Status


def add_arguments(arguments: Arguments) -> None:
    del arguments  # nothing to choose


def run(context: Context) -> Result:
    from kensho.app.remembered import look_at_circuits

    with context.open_app(has_log=False) as app:
        status = app.status()
    return _tell(context, status, None, look_at_circuits(context.settings.store))


async def act(context: Context, app: "Kensho") -> Result:
    """The same, and what the daemon knows beside it."""
    from kensho.app.remembered import look_at_circuits
    from kensho.server.standing import standing

    status, loaded = await standing(app)
    return _tell(context, status, loaded, look_at_circuits(context.settings.store, loaded))


def _tell(context: Context, status: "Status", loaded: "list[LoadedModel] | None", kept: "list[KnownCircuit]") -> Result:
    """`loaded`: what a daemon has loaded; None without one. `kept`: remembered circuits of what is not loaded."""
    output = context.output
    if status.state not in ("damaged", "storage-missing"):  # those are told as errors
        output.data(status.sentence)
    for model in status.models:
        for line in _describe(model):
            output.data(f"  {line}")
    for line in _describe_store(status):
        output.data(f"  {line}")
    for circuit in kept:
        for line in describe_circuit(circuit):
            output.data(f"  {line}")
    for line in _describe_daemon(loaded):
        output.data(f"  {line}")
    error: KenshoError | None = None
    if status.state == "damaged":
        error = Damaged(status.sentence, advice="run kensho repair")
    elif status.state == "storage-missing":
        error = StorageError(status.sentence, advice="run kensho init --from URL --root ROOT.json")
    codes = {"degraded": exits.DEGRADED, "overloaded": exits.OVERLOADED}
    code = exits.exit_code(error) if error else codes.get(status.state, exits.OK)
    daemon = None if loaded is None else {"loaded": [as_dict(model) for model in loaded]}
    circuits = [as_dict(circuit) for circuit in kept]
    return Result(code, {**status.as_json(), "circuits": circuits, "daemon": daemon}, error)


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
    if model.is_upgrading and model.answering not in ("", model.version):
        yield f"  {model.answering} answers until {model.version} is prepared"
    if model.since_s is not None:
        yield f"  since {_time(model.since_s)}; instead: {model.instead}"
    elif model.instead:
        yield f"  instead: {model.instead}"
    if model.ends:
        yield f"  ends with: {model.ends}"


def _describe_store(status: "Status") -> "Iterator[str]":
    for number, check in enumerate(status.checks):
        yield f"{'last check' if number == 0 else 'before it'}: {check.kind}, {_time(check.at_wall_s)}"
    if status.updates:
        word = "expired" if status.updates.is_expired else "good until"
        yield f"metadata: {word} {_time(status.updates.expires_at_s)}"


def _describe_daemon(loaded: "list[LoadedModel] | None") -> "Iterator[str]":
    if loaded is None:
        return
    yield f"daemon: running, {len(loaded) or 'no'} model{'' if len(loaded) == 1 else 's'} loaded"
    for model in loaded:
        words = [f"{model.model} {model.version}: {model.tier} tier", f"queue {model.level}"]
        words += [f"{model.running} of {model.slots} running, {sum(model.waiting.values())} waiting"]
        words += ["pinned"] if model.is_pinned else []
        words += ["another tier is being prepared"] if model.is_upgrading else []
        if model.wanted_version:
            words += [f"{model.wanted_version} {'cannot be used' if model.kept_because else 'is being prepared'}"]
        yield f"  {', '.join(words)}"
        for engine in model.engines:
            where = f"process {engine.pid}" if engine.pid else "not running"
            state, reason, advice = (engine.circuit[key] for key in ("state", "reason", "advice"))
            why = f" ({reason})" if state != "CLOSED" and reason else ""
            yield f"    {engine.engine}: {state}{why}, {engine.tier} tier, {where}"
            if advice:
                yield f"      {advice}"


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
