"""Kensho keeps AI models working on machines that nobody watches.

    import kensho
    async with kensho.open(store="...", source="https://models.example/app", root="root.json") as app:
        async for token in app.generate("dialogue", "Bonjour"): print(token.text, end="")

`kensho.pull`, `verify`, `repair` and `status` are blocking calls on the same store, for scripts. Importing this module
imports nothing at all: the parts come with their first use, and `kensho` hands a command to its daemon before that.
"""

TYPE_CHECKING = False  # importing `typing` takes longer than asking the daemon
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kensho.app import Kensho
    from kensho.app.status import Status
    from kensho.delivery.checker import VerifyReport
    from kensho.delivery.repair import RepairReport
    from kensho.delivery.updater import PullReport

__version__ = "0.1.0"
__all__ = ["open", "pull", "repair", "status", "verify"]


def open(  # the contract's name
    *,
    store: "str | Path | None" = None,
    source: str | None = None,
    root: "str | Path | None" = None,
    **settings: object,
) -> "Kensho":
    """The application on a store, for `async with` (or `with`, for its blocking calls).

    `source` (http(s):// or file:// URL) and `root` (path of the root file that the publisher gave you) make the store
    when it is not there yet; they are not needed afterwards. `settings` are the fields of `kensho.settings.Settings`.
    With a source, `generate` pulls a model that is not installed. Raises UsageError for settings that make no sense.
    """
    from pathlib import Path

    from kensho.app import Kensho
    from kensho.base.clock import SystemClock
    from kensho.settings import load_settings

    loaded = load_settings({"store": None if store is None else str(store), **settings})
    return Kensho(loaded, clock=SystemClock(), source=source, root=None if root is None else Path(root))


def pull(
    models: "Sequence[str]" = (),
    *,
    store: "str | Path | None" = None,
    source: str | None = None,
    root: "str | Path | None" = None,
) -> "PullReport":
    """Bring the named models (default: all installed ones) to their newest version. Blocks; see `Kensho.pull`."""
    with open(store=store, source=source, root=root) as app:
        return app.pull(models)


def verify(*, store: "str | Path | None" = None, full: bool = False) -> "VerifyReport":
    """Check the stored bytes: what has changed, or with `full` every byte. Never uses the network."""
    with open(store=store) as app:
        return app.verify(is_full=full)


def repair(*, store: "str | Path | None" = None) -> "RepairReport":
    """Mend what verify finds, from other local bytes first, then the network."""
    with open(store=store) as app:
        return app.repair()


def status(*, store: "str | Path | None" = None) -> "Status":
    """How things stand. Never uses the network."""
    with open(store=store) as app:
        return app.status()
