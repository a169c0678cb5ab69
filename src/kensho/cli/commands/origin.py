"""`kensho origin REPO --port P`: a static range server for trials. Production uses any web server."""

import signal
import threading
from pathlib import Path

from kensho.cli.arguments import Arguments
from kensho.cli.context import Context, Result


def add_arguments(arguments: Arguments) -> None:
    arguments.add_argument("repository", metavar="REPO", type=Path)
    arguments.add_argument("--port", type=int, default=8088, metavar="P", help="0 chooses a free one (default 8088)")


def run(context: Context) -> Result:
    from kensho.server.origin import Origin

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Origin(context.args.repository, port=context.args.port) as origin:
        context.output.json_line({"type": "listening", "url": origin.url})
        context.output.data(origin.url)
        context.output.note(f"serving {context.args.repository} to this machine only; Ctrl-C ends it")
        stop.wait()
        return Result(keys={"url": origin.url})
