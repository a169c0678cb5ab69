"""What a compile child is asked to do, as text for its command line. Pure."""

import json

from kensho.base.structs import Struct, as_dict
from kensho.runtime.cache.header import KeyFields


class CompileJob(Struct):
    """Make a graph for the model in `model_folder` in the empty folder `out_folder`."""

    model: str
    version: str
    model_folder: str
    out_folder: str
    max_positions: int
    threads: int
    key: KeyFields | None
    """None = the raw graph, which needs no compiling."""
    is_background: bool = False
    """Nobody waits for it, but its result is wanted soon: the others get most of the processors."""
    is_idle: bool = False
    """It is a guess that it will be wanted: it runs only where the machine has nothing else to do."""


def dump_job(job: CompileJob) -> str:
    return json.dumps(as_dict(job))


def parse_job(text: str) -> CompileJob:
    """The job that `dump_job` wrote, in our own parent: a mistake in it is a bug and raises as one."""
    values = json.loads(text)
    key = values.pop("key")
    if key is not None:
        key = KeyFields(**{**key, "cpu_features": tuple(key["cpu_features"])})
    return CompileJob(**values, key=key)
