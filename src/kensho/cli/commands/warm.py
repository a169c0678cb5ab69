"""`kensho warm MODEL...`: compile and load ahead, so that no user waits for it."""

from typing import TYPE_CHECKING

from kensho.base.errors import KenshoError
from kensho.cli import exits
from kensho.cli.arguments import Arguments
from kensho.cli.context import Context, Result

if TYPE_CHECKING:
    from kensho.app import Kensho
    from kensho.runtime.cache.loaded_graph import LoadedGraph


def add_arguments(arguments: Arguments) -> None:
    arguments.add_argument("models", metavar="MODEL", nargs="+")
    arguments.add_argument("--tier", choices=("auto", "raw", "mapped", "mixed", "packed"), help="default: auto")


def run(context: Context) -> Result:
    import asyncio

    return asyncio.run(_alone(context))


async def _alone(context: Context) -> Result:
    async with context.open_app() as app:
        found = await _warm(context, app)
    return _tell(context, found)  # once the background is done, too


async def act(context: Context, app: "Kensho") -> Result:
    """Warm the models of an application that stays: they stay loaded."""
    return _tell(context, await _warm(context, app))


async def _warm(context: Context, app: "Kensho") -> "dict[str, LoadedGraph | KenshoError]":
    """Each model by itself: one that cannot be had does not keep the others cold."""
    found: dict[str, LoadedGraph | KenshoError] = {}
    for model in dict.fromkeys(context.args.models):
        try:
            found[model] = await app.warm(model)
        except KenshoError as error:
            found[model] = error
    return found


def _tell(context: Context, found: "dict[str, LoadedGraph | KenshoError]") -> Result:
    graphs = [graph for graph in found.values() if not isinstance(graph, KenshoError)]
    errors = {model: error for model, error in found.items() if isinstance(error, KenshoError)}
    for graph in graphs:
        context.output.data(
            f"{graph.model} {graph.version} is warm on the {graph.tier} tier: graph from {graph.source} in "
            f"{graph.seconds:.2f} s"
        )
    keys = {"graphs": [_as_json(graph) for graph in graphs], "failed": sorted(errors)}
    if not errors:
        return Result(keys=keys)
    first = next(iter(errors.values()))
    return Result(exits.exit_code(first), keys, first)


def _as_json(graph: "LoadedGraph") -> dict[str, object]:
    return {
        "key": graph.key,
        "model": graph.model,
        "version": graph.version,
        "tier": graph.tier,
        "load_source": graph.source,
        "seconds": graph.seconds,
    }
