"""The builder of tables for an installed model: a child process that may be killed at any time.

    python -m kensho.runtime.text.tokenizer.build_child PARENT_PID MODEL_FOLDER MADE_HERE DIGESTS

DIGESTS is a JSON object, path -> SHA-256, as the store verified them; tables of other bytes are not kept. Everything
else on the machine goes first. One process builds, whoever comes meanwhile leaves. Nothing but a complete file, or a
reason why there can be none, ever has its name. Exit code 0 in all these cases.
"""

import json
import os
import sys
from pathlib import Path

from kensho.base.network_guard import forbid_network
from kensho.runtime.cache.pins import FileLock
from kensho.runtime.system.parent_death import die_with_parent
from kensho.runtime.text.tokenizer.build_folder import build_folder
from kensho.runtime.text.tokenizer.files import forget_tries, keep_reason, keep_tables, made_name, note_try, sources_of
from kensho.runtime.text.tokenizer.refuse import NotCovered
from kensho.runtime.text.tokenizer.tables import Tables

_NICE = 10
"""As the background compiler: a ninth of an even share beside a busy program, all of it beside an idle one."""


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    forbid_network()
    os.nice(_NICE)
    folder, made_here, digests = Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
    made_here.mkdir(parents=True, exist_ok=True)
    lock = FileLock.on_file(made_here / f"{made_name(digests)}.lock")
    if lock is None:
        return
    try:
        note_try(digests, made_here)
        data = build_folder(folder)
        if Tables(memoryview(data), folder.name).meta["sources"] == sources_of(digests):
            keep_tables(data, digests, made_here)
            forget_tries(digests, made_here)
    except NotCovered as error:
        keep_reason(error.reason, digests, made_here)
        forget_tries(digests, made_here)
    finally:
        lock.close(remove=True)


if __name__ == "__main__":
    main()
