"""The delivery half of the application: one store, the source it knows, and what may be done with them. Blocking.

Nothing here imports TUF or an HTTP library before the network is really wanted: an offline start pays for neither.
"""

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kensho.app.status import LastCheck, ModelStatus, Status, make_status
from kensho.base.clock import Clock
from kensho.base.errors import ConfigError, Damaged, NetworkNotAllowed, TransportError, UsageError
from kensho.base.events import Emit, RootTrusted
from kensho.delivery.checker import VerifyReport, check_model, verify
from kensho.delivery.disk import RealDisk
from kensho.delivery.manifest import MAX_MANIFEST_BYTES, parse_manifest
from kensho.delivery.retention import gc, rollback
from kensho.delivery.store import InstalledModel, Store
from kensho.settings import Settings

if TYPE_CHECKING:
    from kensho.delivery.plan import Plan
    from kensho.delivery.releases import ReleaseRef
    from kensho.delivery.repair import Repairer, RepairReport
    from kensho.delivery.sources import Source
    from kensho.delivery.trust import Trust
    from kensho.delivery.updater import PullReport, Updater

SOURCE_SETTING = "source"
MAX_ROOT_BYTES = 512_000
"""python-tuf's own limit for root metadata."""


class Deliveries:
    """Opens the store at first use. Not thread-safe."""

    def __init__(self, settings: Settings, *, client_version: str, clock: Clock, emit: Emit) -> None:
        self._settings = settings
        self._client_version = client_version
        self._clock = clock
        self._emit = emit
        self._opened: Store | None = None

    @property
    def store(self) -> Store:
        """StorageError if there is none: it is made by `init`."""
        if self._opened is None:
            self._opened = Store.open(self._settings.store, disk=RealDisk())
        return self._opened

    @property
    def source_url(self) -> str | None:
        """Where this store pulls from."""
        return self.store.state.setting(SOURCE_SETTING)

    def has_store(self) -> bool:
        return (self._settings.store / "format").exists()

    def init(self, url: str, root: bytes) -> int:
        """Make the store (if it is not there) and trust this root; returns its version. See `Trust.initialise`."""
        from kensho.delivery.sources import open_source
        from kensho.delivery.trust import Trust

        open_source(url, clock=self._clock, proxy=None, allow_network=True)  # an address that makes no sense: refused
        Trust.check_root(root)  # before anything is written
        self._opened = Store.create(self._settings.store, disk=RealDisk())
        with self._opened.writing():
            version = Trust.initialise(self._opened.trusted, root)
            self._opened.state.set_setting(SOURCE_SETTING, url)
        self._emit(RootTrusted(root_version=version, url=url))
        return version

    def plan(self, models: Sequence[str]) -> "list[Plan]":
        return self._updater().plan(models)

    def pull(self, models: Sequence[str]) -> "PullReport":
        return self._updater().pull(models)

    def verify(self, *, is_full: bool) -> VerifyReport:
        return verify(self.store, is_full=is_full, clock=self._clock, emit=self._emit)

    def repair(self) -> "RepairReport":
        """Checks every byte, then mends what is wrong."""
        damaged = self.verify(is_full=True).damaged
        return self._repairer().repair(damaged)

    def ready_model(self, name: str) -> InstalledModel:
        """The current version, every byte of it verified now or vouched for; damaged chunks are mended first.

        Never uses the network unless something is damaged that this disk cannot mend. Raises NotInstalled, and Damaged
        if it could not be mended now: nothing damaged is ever used.
        """
        damaged = check_model(self.store, name, clock=self._clock, emit=self._emit).damaged
        if damaged:
            report = self._repairer().repair(damaged)
            if report.unrepaired:
                why = f" ({report.error.message})" if report.error else ""
                raise Damaged(
                    f"model {name!r} is damaged and cannot be mended now: {', '.join(report.unrepaired)}{why}",
                    advice="connect to the source and run `kensho repair`, or go back with `kensho rollback`",
                )
        return self.store.model(name)

    def fallback_of(self, name: str) -> str | None:
        """The installed model that the publisher named to answer when this one cannot (row D8)."""
        try:
            document = self.store.document(self.store.model(name).manifest, max_bytes=MAX_MANIFEST_BYTES)
        except Damaged:
            return None
        fallback = parse_manifest(document).fallback_model
        installed = {model.model for model in self.store.installed()}
        return fallback if fallback in installed and fallback != name else None

    def rollback(self, model: str, version: str | None) -> str:
        return rollback(self.store, model, version, clock=self._clock, emit=self._emit)

    def gc(self) -> int:
        return gc(self.store, clock=self._clock)

    def status(self) -> Status:
        """From what the store recorded; hashes nothing."""
        if not self.has_store():
            return Status("storage-missing", f"There is no store in {self._settings.store}.")
        checks = self.store.state.checks()
        last = max(((at, kind) for kind, (at, _) in checks.items()), default=None)
        check = None if last is None else LastCheck(kind=last[1], at_wall_s=last[0])
        damaged = {
            damage.model for damage in verify(self.store, is_full=False, clock=self._clock, emit=_silent).damaged
        }
        models = tuple(_describe(model, model.model in damaged) for model in self.store.installed())
        return make_status(models, check, self.source_url)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall_s(), UTC)

    # --- sources ---

    def open_source(self) -> "Source":
        """The store's source. ConfigError if none is known, NetworkNotAllowed if it needs what is forbidden."""
        from kensho.delivery.sources import open_source

        url = self.source_url
        if url is None:
            raise ConfigError("this store knows no source", advice="run `kensho init --from URL --root ROOT.json`")
        proxy = None if _is_this_machine(url) else self._settings.proxy
        return open_source(url, clock=self._clock, proxy=proxy, allow_network=self._settings.network)

    def published(self) -> "list[ReleaseRef]":
        """The newest release of each model at the source, which is asked now. Raises TransportError, TrustError."""
        source, trust = self.open_source(), self._trust()
        trust.refresh(source)
        return list({ref.model: ref for ref in reversed(trust.releases())}.values())

    def _trust(self) -> "Trust":
        from kensho.delivery.trust import Trust

        return Trust(self.store.trusted, now=self.now, emit=self._emit)

    def _updater(self) -> "Updater":
        from kensho.delivery.updater import Updater

        source = self.open_source()  # what forbids the network is told before TUF is imported
        return Updater(
            self.store,
            self._trust(),
            [source],
            client_version=self._client_version,
            emit=self._emit,
            clock=self._clock,
            rng=random.random,
            connections=self._settings.connections,
        )

    def _repairer(self) -> "Repairer":
        from kensho.delivery.repair import Repairer

        sources: list[Source] = []
        reason: TransportError | None = None
        try:
            sources = [self.open_source()]
        except NetworkNotAllowed as error:
            reason = error
        except ConfigError as error:
            reason = TransportError(error.message, advice=error.advice)
        return Repairer(
            self.store,
            sources,
            emit=self._emit,
            clock=self._clock,
            rng=random.random,
            connections=self._settings.connections,
            reason=reason,
        )


def read_root(path: Path) -> bytes:
    """The bytes of a root file, bounded. UsageError if it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_ROOT_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"root file {path} cannot be read: {error.strerror}", advice="ask the publisher for it"
        ) from error
    if len(data) > MAX_ROOT_BYTES:
        raise UsageError(f"root file {path} is larger than 512 kB", advice="ask the publisher for the right file")
    return data


def _describe(model: InstalledModel, is_damaged: bool) -> ModelStatus:
    reasons = [f"{file.path}: {file.reason}" for file in model.files if file.reason]
    return ModelStatus(
        model=model.model,
        version=model.version,
        previous=model.previous,
        state="damaged" if is_damaged else "degraded" if model.is_degraded else "ready",
        size_bytes=sum(file.size_bytes for file in model.files),
        reason="; ".join(reasons),
    )


def _is_this_machine(url: str) -> bool:
    """A proxy is never asked for an address of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _silent(event: object) -> None:
    """Looking at the status is no news."""
    del event
