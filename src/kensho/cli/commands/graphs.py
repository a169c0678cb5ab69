"""`kensho graphs list|prune|clear`: the cache of compiled graphs."""

import argparse
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kensho.base.units import size_text
from kensho.cli.main import Context, Result

if TYPE_CHECKING:
    from kensho.app.graphs import Graphs
    from kensho.runtime.graph_list import GraphInfo

_STATES = {
    "ready": "",
    "obsolete": "  obsolete: made by another engine or Kensho; prune removes it",
    "other_machine": "  for a machine with another processor",
    "format_newer": "  of a newer Kensho",
    "damaged": "  damaged; prune removes it",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("list", "prune", "clear"),
        help="list what is there; prune what nothing can use any more; clear all that no program uses now",
    )


def run(context: Context) -> Result:
    from kensho.app import graphs

    action = context.args.action
    with context.open_app(has_log=action != "list") as app:
        before = graphs.look_at_graphs(context.settings, emit=app.emit)
        if action == "list":
            _show(context, before)
            return Result(keys=before.as_json())
        change = graphs.prune if action == "prune" else graphs.clear
        after = change(context.settings, emit=app.emit)
    freed = before.size_bytes - after.size_bytes
    count = len(before.entries) - len(after.entries)
    context.output.data(f"{count} graphs removed, {size_text(freed)} freed, {len(after.entries)} left")
    return Result(keys={**after.as_json(), "removed": count, "bytes_freed": freed})


def _show(context: Context, graphs: "Graphs") -> None:
    output = context.output
    for graph in graphs.entries:
        output.data(_line(graph))
    known = graphs.statistics
    output.data(
        f"{len(graphs.entries)} graphs, {size_text(graphs.size_bytes)} of {size_text(graphs.limit_bytes)}; "
        f"found {known.hits} times, compiled {known.misses} times"
    )


def _line(graph: "GraphInfo") -> str:
    used_s = graph.last_use_wall_s
    used = "never used" if used_s is None else f"used {datetime.fromtimestamp(used_s, UTC):%Y-%m-%d %H:%M}"
    name = f"{graph.model} {graph.version}" if graph.model else "?"
    now = ", in use now" if graph.is_in_use else ""
    return f"{graph.key[:16]}  {name}  {size_text(graph.size_bytes)}  {used}{now}{_STATES[graph.state]}"
