"""Run a `kensho` command and prove that it tried no connection.

    python -m kensho.testing.connections --store DIR run MODEL PROMPT

The command runs as always, but each try to leave the machine is refused, written to stderr as
`connection tried: ...`, and makes the exit code 1. Engine hosts and compile children guard themselves anyway.
"""

import sys
from collections.abc import Sequence

from kensho.base.network_guard import forbid_network

MARK = "connection tried:"


def main(argv: Sequence[str]) -> int:
    """The command's own exit code, or 1 if it tried a connection."""
    from kensho.cli.main import main as kensho

    tried: list[str] = []

    def on_try(what: str) -> None:
        tried.append(what)
        sys.stderr.write(f"{MARK} {what}\n")

    forbid_network(on_try)
    code = kensho(argv)
    return 1 if tried else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
