"""The delivery half of the application: one store, the source it knows, and what may be done with them. Blocking.

Nothing here imports TUF or an HTTP library before the network is really wanted: an offline start pays for neither. What
an answer does not need comes with its first use: an import costs more than what it is for.
"""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from kensho.app.status import LastCheck, Status, make_status
from kensho.base.clock import Clock, Seconds
from kensho.base.errors import (
    ConfigError,
    Damaged,
    KenshoError,
    NetworkNotAllowed,
    StorageError,
    TransportError,
    UsageError,
)
from kensho.base.events import Emit, RepairPostponed, RootTrusted
from kensho.delivery.checker import Damage, VerifyReport, check_model, look, verify
from kensho.delivery.disk import RealDisk
from kensho.delivery.store import InstalledModel, Store, is_store
from kensho.settings import Settings

if TYPE_CHECKING:
    from kensho.base.backoff import Rng
    from kensho.delivery.plan import Plan
    from kensho.delivery.releases import ReleaseRef
    from kensho.delivery.repair import Repairer, RepairReport
    from kensho.delivery.scrub import Scrubber
    from kensho.delivery.sources import Source
    from kensho.delivery.trust import Trust
    from kensho.delivery.updater import PullReport, Updater

SOURCE_SETTING = "source"
SCRUB_RETRY_S: Seconds = 600.0
"""Until what the scrub found and could not mend is tried again, and until a store is looked for. A guess."""
MAX_ROOT_BYTES = 512_000
"""python-tuf's own limit for root metadata."""


class Deliveries:
    """Opens the store at first use. Not thread-safe, but `scrub` may run beside the rest."""

    def __init__(self, settings: Settings, *, client_version: str, clock: Clock, emit: Emit) -> None:
        self._settings = settings
        self._client_version = client_version
        self._clock = clock
        self._emit = emit
        self._opened: Store | None = None
        self._opening = Lock()
        self._changing = Lock()
        """Held by what changes the store: threads of one application wait for each other, processes do not."""
        self._scrubber: Scrubber | None = None
        self._unmended: tuple[Damage, ...] = ()
        self._mend_after_s: Seconds = 0.0

    @property
    def store(self) -> Store:
        """StoreMissing if there is none, or not now: it is made by `init`, and opened anew when its disk is back."""
        with self._opening:  # the scrub comes from a thread of its own
            if self._opened is not None and not self.has_store():
                self.close()
            if self._opened is None:
                self._opened = Store.open(self._settings.store, disk=RealDisk())
            return self._opened

    @property
    def source_url(self) -> str | None:
        """Where this store pulls from."""
        return self.store.state.setting(SOURCE_SETTING)

    def has_store(self) -> bool:
        return is_store(self._settings.store)

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
        from kensho.delivery.schedule import start_delay

        updater = self._updater()
        self._clock.sleep(start_delay(self._settings.pull_jitter_s, _rng()))
        with self._changing:
            return updater.pull(models)

    def verify(self, *, is_full: bool) -> VerifyReport:
        return verify(self.store, is_full=is_full, clock=self._clock, emit=self._emit)

    def repair(self) -> "RepairReport":
        """Checks every byte, then mends what is wrong."""
        with self._changing:
            damaged = self.verify(is_full=True).damaged
            return self._repairer().repair(damaged)

    def ready_model(self, name: str) -> InstalledModel:
        """The current version, every byte of it verified now or vouched for; damaged chunks are mended first.

        Never uses the network unless something is damaged that this disk cannot mend. Raises NotInstalled, and Damaged
        if it could not be mended now: nothing damaged is ever used.
        """
        damaged = self._check(name)
        if damaged:
            has_waited = not self._changing.acquire(blocking=False)
            if has_waited:
                self._changing.acquire()
            try:
                # Who was waited for (the scrub, say) may have mended it: looked at again, but told only once.
                self._mend_model(name, self._check(name) if has_waited else damaged)
            finally:
                self._changing.release()
        if not self.store.is_read_only:
            with suppress(StorageError):  # an answer is worth more than a count (row D13)
                self.store.state.note_use(name, now=self._clock.wall_s())
        return self.store.model(name)

    def fallback_of(self, name: str) -> str | None:
        """The installed model that the publisher named to answer when this one cannot (row D8). Known too of a model
        of which nothing is installed, once a pull of it has failed."""
        from kensho.delivery.manifest import MAX_MANIFEST_BYTES, parse_manifest

        if not self.has_store():
            return None
        installed = {model.model: model for model in self.store.installed()}
        shortfall = self.store.state.shortfalls().get(name)
        fallback = shortfall.fallback_model if shortfall else None
        if name in installed:
            try:
                document = self.store.document(installed[name].manifest, max_bytes=MAX_MANIFEST_BYTES)
            except Damaged:
                return None
            fallback = parse_manifest(document).fallback_model
        return fallback if fallback in installed and fallback != name else None

    def rollback(self, model: str, version: str | None) -> str:
        from kensho.delivery.retention import rollback

        with self._changing:
            return rollback(self.store, model, version, clock=self._clock, emit=self._emit)

    def gc(self) -> int:
        from kensho.delivery.retention import gc

        with self._changing:
            return gc(self.store, clock=self._clock)

    def pin(self, model: str, version: str | None) -> None:
        from kensho.delivery.retention import pin

        with self._changing:
            pin(self.store, model, version)

    def status(self) -> Status:
        """What is there and what was recorded. Leaves no trace; hashes only a file that was touched since its check."""
        from kensho.app.describe import describe_models, describe_updates

        if not self.has_store():
            return Status("storage-missing", f"There is no store in {self._settings.store}.")
        store, now = self.store, self._clock.wall_s()
        checks = sorted(((at, kind) for kind, (at, _) in store.state.checks().items()), reverse=True)
        return make_status(
            describe_models(store, look(store, clock=self._clock), now=now),
            tuple(LastCheck(kind, at) for at, kind in checks),
            self.source_url,
            describe_updates(store, now=now),
        )

    # --- in the background ---

    def scrub(self) -> Seconds:
        """Hash what is due of the scrub and mend what it finds; returns how long to wait before the next call.

        Blocks for some 30 ms, longer when something must be fetched. Call it from one thread at a time. What cannot be
        mended now is tried again later, and is never used meanwhile: every check knows of it.
        """
        if not self.has_store():
            return min(SCRUB_RETRY_S, self._settings.scrub_period_s / 100)
        if self._scrubber is None:
            from kensho.delivery.scrub import Scrubber

            self._scrubber = Scrubber(
                self.store, clock=self._clock, emit=self._emit, period_s=self._settings.scrub_period_s
            )
        step = self._scrubber.step()
        self._unmended = tuple(dict.fromkeys((*self._unmended, *step.damaged)))
        if self._unmended and self._clock.monotonic_s() >= self._mend_after_s:
            self._mend()
        return min(step.wait_s, SCRUB_RETRY_S) if self._unmended else step.wait_s

    def _mend(self) -> None:
        try:
            with self._changing:
                error = self._repairer().repair(self._unmended).error
        except KenshoError as caught:  # another process has the lock, no space: it may pass
            error = caught
        if error is None:
            self._unmended = ()
            return
        self._mend_after_s = self._clock.monotonic_s() + SCRUB_RETRY_S
        self._emit(RepairPostponed(files=len(self._unmended), reason=error.message, delay_s=SCRUB_RETRY_S))

    def close(self) -> None:
        self._scrubber = None
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall_s(), UTC)

    # --- checking before use ---

    def _check(self, name: str) -> tuple[Damage, ...]:
        return check_model(self.store, name, clock=self._clock, emit=self._emit).damaged

    def _mend_model(self, name: str, damaged: tuple[Damage, ...]) -> None:
        report = self._repairer().repair(damaged)
        if report.unrepaired:
            why = f" ({report.error.message})" if report.error else ""
            raise Damaged(
                f"model {name!r} is damaged and cannot be mended now: {', '.join(report.unrepaired)}{why}",
                advice="connect to the source and run `kensho repair`, or go back with `kensho rollback`",
            )

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
            rng=_rng(),
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
            rng=_rng(),
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


def _rng() -> "Rng":
    """The machine's randomness, for jitter."""
    import random

    return random.random


def _is_this_machine(url: str) -> bool:
    """A proxy is never asked for an address of this machine."""
    from ipaddress import ip_address
    from urllib.parse import urlsplit

    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
