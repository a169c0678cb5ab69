"""What `kensho` can do and what `kensho --help` says: data and text, nothing imported, so that help is there at once.

`cli.main` makes its parsers of the same table, so what is said here is what is understood.
"""

COMMANDS = {
    "demo": "the whole story on real parts, in less than a minute",
    "keygen": "make the publisher's signing keys",
    "publish": "cut, pack and sign a model folder into a repository",
    "resign": "renew the signatures of a repository before they expire",
    "prune": "remove old releases from a repository",
    "origin": "serve a repository over HTTP, for trials",
    "init": "make the store and trust a publisher's root",
    "plan": "what a pull would do, without doing it",
    "pull": "bring models to their newest version",
    "status": "how things stand, in one sentence and in detail",
    "verify": "check the stored bytes; never uses the network",
    "repair": "mend what verify finds",
    "rollback": "go back to the previous version, from this disk",
    "pin": "hold a model at a version, or let it go",
    "gc": "remove what nothing needs",
    "run": "one answer from a model, streamed",
    "warm": "compile and load models ahead, so that no user waits",
    "serve": "the daemon: keeps models warm, answers on a socket and over HTTP",
    "fault": "make an engine of the daemon fail, for a rehearsal",
    "circuit": "show which engines get requests; take one out, or give it back",
    "level": "change what the daemon's log has, by service",
    "graphs": "the cache of compiled graphs: list, prune, clear",
    "doctor": "what is wrong, in words, each with a fix",
}

GLOBAL_OPTIONS = (
    ("--store", "DIR", "folder of the store (else KENSHO_STORE, else the XDG data folder)"),
    ("--json", "", "JSON lines on stdout, the last one a summary"),
    ("--quiet", "", "no notes and no progress"),
    ("--no-network", "", "never try a connection"),
    ("--config", "FILE", "settings in TOML"),
    ("--debug", "", "show the traceback of an error"),
)
"""Name, what its value is called (empty: it has none), help. They stand before or after the command."""

_EXIT_CODES = """\
Exit codes: 0 ok, 1 failure, 2 usage, 3 degraded, 4 damaged, 5 trust refused, 6 no space, 7 network needed,
8 no daemon, 9 overloaded, 130 interrupted.
"""


def help_text() -> str:
    """Of the program as a whole."""
    options = [("-h, --help", "show this help and exit"), ("--version", "show the version and exit")]
    options += [(f"{name} {value}".rstrip(), text) for name, value, text in GLOBAL_OPTIONS]
    return (
        "usage: kensho [OPTIONS] COMMAND ...\n\n"
        "Keeps AI models working on machines that nobody watches.\n\n"
        f"commands (kensho COMMAND --help says more):\n{_table(list(COMMANDS.items()))}\n"
        f"options, before or after the command:\n{_table(options)}\n{_EXIT_CODES}"
    )


def words_of(arguments: list[str]) -> list[int]:
    """Where the words stand: the arguments that are no options, nor values of global options. The first one is the
    command. After `--` everything is a word."""
    found: list[int] = []
    takes_value = False
    for index, argument in enumerate(arguments):
        if takes_value:
            takes_value = False
        elif argument == "--":
            found += range(index + 1, len(arguments))
            break
        elif argument in _WITH_VALUE:
            takes_value = True
        elif not argument.startswith("-"):
            found.append(index)
    return found


_WITH_VALUE = frozenset(name for name, value, _ in GLOBAL_OPTIONS if value)


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "".join(f"  {name:<{width}}  {text}\n" for name, text in rows)
