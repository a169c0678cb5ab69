"""`kensho graphs list|prune|clear`: the cache of compiled graphs, and the tokenizer tables that were made beside it."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kensho.base.units import size_text
from kensho.cli.arguments import Arguments
from kensho.cli.context import Context, Result

if TYPE_CHECKING:
    from kensho.app.graphs import Graphs
    from kensho.runtime.cache.graph_list import FailedGraph, GraphInfo

_STATES = {
    "ready": "",
    "orphaned": "  its model is not installed any more; prune removes it",
    "obsolete": "  obsolete: made by another engine or Kensho; prune removes it",
    "other_machine": "  for a machine with another processor",
    "format_newer": "  of a newer Kensho",
    "damaged": "  damaged; prune removes it",
}


def add_arguments(arguments: Arguments) -> None:
    arguments.add_argument(
        "action",
        choices=("list", "prune", "clear"),
        help="list what is there; prune what nothing can use any more; clear all that no program uses now",
    )


def run(context: Context) -> Result:
    from kensho.app import graphs

    action = context.args.action
    with context.open_app(has_log=action != "list") as app:
        before = graphs.look_at_graphs(app)
        if action == "list":
            _show(context, before)
            return Result(keys=before.as_json())
        after = graphs.prune(app) if action == "prune" else graphs.clear(app)
    freed = before.size_bytes + before.tables_bytes - after.size_bytes - after.tables_bytes
    count, tables = len(before.entries) - len(after.entries), len(before.tables) - len(after.tables)
    also = f" and {_count(tables, 'tokenizer table')}" if tables else ""
    context.output.data(
        f"{_count(count, 'graph')}{also} removed, {size_text(freed)} freed, {_count(len(after.entries), 'graph')} left"
    )
    return Result(keys={**after.as_json(), "removed": count, "tables_removed": tables, "bytes_freed": freed})


def _show(context: Context, graphs: "Graphs") -> None:
    output = context.output
    for graph in graphs.entries:
        output.data(_line(graph))
    for failed in graphs.failed:
        output.data(_failed_line(failed))
    for tables in graphs.tables:
        names = ", ".join(tables.used_by)
        about = f"tokenizer tables of {names}" if names else "tokenizer tables"
        output.data(
            f"{tables.name[10:26]}  {about}  {size_text(tables.size_bytes)}{'' if names else _STATES['orphaned']}"
        )
    known = graphs.statistics
    output.data(
        f"{_count(len(graphs.entries), 'graph')}, {size_text(graphs.size_bytes)} of {size_text(graphs.limit_bytes)}; "
        f"found {known.hits} times, compiled {known.misses} times"
    )


def _line(graph: "GraphInfo") -> str:
    names = ", ".join(graph.used_by) or (f"{graph.model} {graph.version}" if graph.model else "?")
    used = f"used {_time(graph.last_use_wall_s)}" if graph.last_use_wall_s is not None else "never used"
    speeds = "".join(f", {speed.form} {speed.decode_us / 1000:.1f} ms a token" for speed in graph.speeds)
    now = ", in use now" if graph.is_in_use else ""
    return f"{graph.key[:16]}  {names}  {size_text(graph.size_bytes)}  {used}{speeds}{now}{_STATES[graph.state]}"


def _failed_line(failed: "FailedGraph") -> str:
    known = failed.failures
    after = f"tried again in {failed.barred_s / 60:.0f} min" if failed.barred_s else "tried again when it is wanted"
    return (
        f"{failed.key[:16]}  {known.model or '?'}  no graph: compiling failed {known.count} times, last "
        f"{_time(known.at_wall_s)} in {known.stage}: {known.reason}; {after}"
    )


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _time(at_wall_s: float) -> str:
    return f"{datetime.fromtimestamp(at_wall_s, UTC):%Y-%m-%d %H:%M}"
