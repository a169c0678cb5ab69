"""The console script `kensho`: does what can be done before anything is imported, and hands the rest to `cli.main`.

Help, and a command that the store's daemon runs (`client`), are done before any import that costs more than they do.
Rules: (1) nothing is imported above the line that needs it; (2) whatever is not understood here is left to `cli.main`,
which tells what is wrong.
"""

import os
import sys

from kensho import __version__
from kensho.cli.client import try_daemon
from kensho.cli.usage import help_text


def main() -> int:
    """Run the command of `sys.argv`; returns its exit code."""
    arguments, environ = sys.argv[1:], os.environ
    text = _text_at_once(arguments[0] if arguments else "")
    if text:
        sys.stdout.write(text)
        return 0
    code = try_daemon(arguments, environ)
    if code is not None:
        return code
    from kensho.cli.main import main as run

    return run(arguments)


def _text_at_once(argument: str) -> str:
    if argument in ("-h", "--help"):
        return help_text()
    return f"kensho {__version__}\n" if argument == "--version" else ""
