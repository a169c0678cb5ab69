"""`kensho circuit [ENGINE WORD]`: how the engines' circuits stand, and a person's word about one of them (row S1).

A running daemon is asked, and told. Without one it is what the store remembers: see `app.remembered`.
"""

from typing import TYPE_CHECKING

from kensho.base.errors import ConfigError, NoDaemon, NotInstalled, UsageError
from kensho.base.structs import as_dict
from kensho.cli.arguments import Arguments
from kensho.cli.commands.level import no_daemon
from kensho.cli.context import Context, Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kensho.app import Kensho
    from kensho.app.activity import LoadedModel
    from kensho.app.remembered import KnownCircuit

WORDS = {"open": "FORCED_OPEN", "closed": "FORCED_CLOSED", "watch": "METRICS_ONLY", "auto": None}
"""auto: the circuit decides again, also one that was HARD_OPEN."""
MAX_S = 366 * 86400.0


def add_arguments(arguments: Arguments) -> None:
    arguments.add_argument("engine", metavar="ENGINE", nargs="?", help="primary or standby; default: show all circuits")
    arguments.add_argument(
        "word",
        metavar="WORD",
        nargs="?",
        choices=tuple(WORDS),
        help="open, closed, watch (and say when it would open) or auto; default: show the engine",
    )
    arguments.add_argument("--for", dest="for_s", type=float, metavar="SECONDS", help="default: until auto is said")
    arguments.add_argument("--model", metavar="M", help="default: the one that has such a circuit")


def run(context: Context) -> Result:
    """Without a daemon: what the store remembers, and what it shall remember."""
    from kensho.server.daemon_lock import running_daemon

    if running_daemon(context.settings.store) is not None:
        raise no_daemon(context)  # it knows better, and does not take this command
    _check(context)
    with context.open_app(has_log=context.args.word is not None) as app:
        return _tell(context, app, []) if context.args.word else _show(context, [])


async def act(context: Context, app: "Kensho") -> Result:
    """With a daemon: its circuits, and beside them what is remembered of models that are not loaded."""
    _check(context)
    loaded = app.loaded()
    return _tell(context, app, loaded) if context.args.word else _show(context, loaded)


def _check(context: Context) -> None:
    from kensho.app.remembered import ENGINES

    args = context.args
    if args.engine is not None and args.engine not in ENGINES:
        raise ConfigError(f"there is no engine {args.engine[:80]!r}", advice=f"name {' or '.join(ENGINES)}")
    if args.for_s is not None and (args.word in (None, "auto") or not 0 < args.for_s <= MAX_S):
        raise UsageError(
            f"--for cannot be {args.for_s:g}"
            if args.word not in (None, "auto")
            else "--for is for open, closed, watch",
            advice="use a number of seconds, up to a year",
        )


def _show(context: Context, loaded: "list[LoadedModel]") -> Result:
    from kensho.app.remembered import look_at_circuits

    args = context.args
    circuits = [*_running(loaded), *look_at_circuits(context.settings.store, loaded)]
    shown = [one for one in circuits if args.engine in (None, one.engine) and args.model in (None, one.model)]
    for circuit in shown:
        _say(context, circuit)
    if not shown:
        context.output.data("no circuit is running or remembered: an engine gets requests when its model is loaded")
    return Result(keys={"circuits": [as_dict(circuit) for circuit in shown]})


def _tell(context: Context, app: "Kensho", loaded: "list[LoadedModel]") -> Result:
    from kensho.app.remembered import look_at_circuits, tell_circuit
    from kensho.resilience.circuit import FORCED, Mode

    args, word, store = context.args, WORDS[context.args.word], context.settings.store
    mode = None if word is None else Mode(word)
    before = {(one.model, one.engine): one.state for one in (*_running(loaded), *look_at_circuits(store, loaded))}
    running = [model.model for model in loaded]
    kept = [circuit.model for circuit in look_at_circuits(store) if circuit.engine == args.engine]
    installed = [release.model for release in app.releases()]
    model = args.model or _only(running or kept or installed)
    if model in running:
        app.force_circuit(model, args.engine, mode, for_s=args.for_s)
        circuit = next(one for one in _running(app.loaded()) if (one.model, one.engine) == (model, args.engine))
    elif model not in (*kept, *installed):
        raise NotInstalled(f"model {model[:80]!r} is not installed", advice="see kensho status")
    elif args.for_s is not None:
        raise NoDaemon(
            f"{model} is not loaded by a daemon, and a word for a time is not kept over a start",
            advice="leave --for out, or start kensho serve and warm the model",
        )
    else:
        circuit = tell_circuit(store, model, args.engine, mode, clock=context.clock, emit=app.emit)
    _say(context, circuit)
    if mode is None and before.get((model, args.engine), Mode.CLOSED) not in (*FORCED, Mode.HARD_OPEN):
        context.output.note("nothing has changed: it was neither forced nor off, and decides by itself")
    return Result(keys=as_dict(circuit))


def _only(models: "Iterable[str]") -> str:
    names = list(dict.fromkeys(models))
    if not names:
        raise NotInstalled("no model is installed", advice="run kensho pull MODEL")
    if len(names) > 1:
        raise UsageError(f"there are several models: {', '.join(names)}", advice="name one with --model")
    return names[0]


def _running(loaded: "list[LoadedModel]") -> "list[KnownCircuit]":
    from kensho.app.remembered import KnownCircuit

    return [
        KnownCircuit(
            model=model.model,
            engine=engine.engine,
            state=str(engine.circuit["state"]),
            reason=str(engine.circuit["reason"]),
            advice=str(engine.circuit["advice"]),
            is_loaded=True,
        )
        for model in loaded
        for engine in model.engines
    ]


def _say(context: Context, circuit: "KnownCircuit") -> None:
    for line in describe_circuit(circuit):
        context.output.data(line)


def describe_circuit(circuit: "KnownCircuit") -> "Iterator[str]":
    """Lines for people."""
    next_step = f"; {circuit.next_step}" if circuit.next_step else ""
    yield f"engine {circuit.engine} of {circuit.model}: {circuit.state} ({circuit.reason}){next_step}"
    if circuit.advice:
        yield f"  {circuit.advice}"
