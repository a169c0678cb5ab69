"""Where the time of one `kensho run` goes, in both of its processes. Started by bench/startup.py.

    python bench/start_timeline.py FILE BEGAN_NS --store STORE run MODEL PROMPT ...

Watches functions from outside, changing nothing of what they do, and appends a line to FILE at each begin and end:
milliseconds since BEGAN_NS (CLOCK_MONOTONIC, taken by who started this), CPU ms of the process, process, what. Watching
costs some 5 ms. The child that becomes the engine host is watched too: it is forked from this very process.
"""

import builtins
import os
import sys
import time
from importlib import import_module

OUT, BEGAN_NS = sys.argv[1], int(sys.argv[2])
MAIN = os.getpid()
IMPORTS = {
    "asyncio",
    "sqlite3",
    "numpy",
    "onnxruntime",
    "kensho.cli.main",
    "kensho.app",
    "kensho.runtime.hosts.host_main",
}
WATCHED = {
    "kensho.delivery.store": ["Store.open"],
    "kensho.app.deliveries": ["Deliveries.ready_model"],
    "kensho.runtime.text.codec": ["TextCodec.load", "TextCodec.prompt_ids"],
    "kensho.runtime.cache.graph_cache": ["GraphCache.lookup"],
    "kensho.runtime.hosts.frames": ["encode"],
    "kensho.runtime.engine.session": ["Session.load", "Session.append"],
    "kensho.cli.output": ["Output.piece", "Output.summary"],
    "kensho.runtime.hosts.prefork": ["prefork"],
}


def note(what: str) -> None:
    wall_ms = (time.monotonic_ns() - BEGAN_NS) / 1e6
    where = "kensho" if os.getpid() == MAIN else "host"
    fd = os.open(OUT, os.O_WRONLY | os.O_APPEND | os.O_CREAT)  # anew: a host closes what it has inherited
    os.write(fd, f"{wall_ms:.3f} {time.process_time() * 1e3:.3f} {where} {what}\n".encode())
    os.close(fd)


def watched(module: object, path: str) -> None:
    *owner_names, name = path.split(".")
    owner = module
    for part in owner_names:
        owner = getattr(owner, part)
    found = vars(owner)[name]
    inner = found.__func__ if isinstance(found, classmethod) else found

    def around(*args: object, **kwargs: object) -> object:
        label = type(args[0]).__name__ if path == "encode" else path
        note(f"> {label}")
        try:
            return inner(*args, **kwargs)
        finally:
            note(f"< {label}")

    setattr(owner, name, classmethod(around) if isinstance(found, classmethod) else around)


def main() -> int:
    note("  interpreter is up")
    real, seen = builtins.__import__, set()

    def importing(name: str, *rest: object, **more: object) -> object:
        if name in sys.modules:
            return real(name, *rest, **more)  # type: ignore[arg-type]
        is_first = name in IMPORTS and name not in seen
        if is_first:
            seen.add(name)
            note(f"> import {name}")
        try:
            return real(name, *rest, **more)  # type: ignore[arg-type]
        finally:
            if is_first:
                note(f"< import {name}")
            for late in [late for late in WATCHED if late in sys.modules]:
                module = sys.modules[late]
                if not getattr(module.__spec__, "_initializing", False):
                    for path in WATCHED.pop(late):
                        watched(module, path)

    builtins.__import__ = importing  # type: ignore[assignment]
    entry = import_module("kensho.cli.entry")
    sys.argv = ["kensho", *sys.argv[3:]]
    code: int = entry.main()
    note("  end")
    return code


if __name__ == "__main__":
    sys.exit(main())
