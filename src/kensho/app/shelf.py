"""The installed models as those see them who load them: which version, what it needs, whether it is whole, its uses."""

from collections.abc import Callable

from kensho.app.tiers import ModelSizes
from kensho.app.warmup import Candidate
from kensho.base.clock import Clock
from kensho.base.errors import Damaged
from kensho.base.events import Emit
from kensho.delivery.checker import check_version
from kensho.delivery.stamp import read_stamp
from kensho.delivery.store import InstalledModel, Store
from kensho.runtime.cache.graph_identity import stated_kv_bytes
from kensho.settings import Settings

USES_SETTING = "uses_by_hour"
COMPILE_BYTES = 160 << 20
"""Own memory of a compile: 105 MB for 270M, whatever the model, since it works in blocks; and room for a larger one."""


class StoreShelf:
    """Satisfies `warmer.Shelf` and `successors.Shelf`. All but `stamp` block, and raise StorageError where there is no
    store."""

    def __init__(self, store: Callable[[], Store], settings: Settings, *, clock: Clock, emit: Emit) -> None:
        self._open = store
        self._settings = settings
        self._clock = clock
        self._emit = emit

    def stamp(self) -> object | None:
        """Another value when something in the store has changed, None: perhaps. 5 us."""
        return read_stamp(self._settings.store, now=self._clock.wall_s())

    def current(self) -> dict[str, str]:
        """The current version of each model."""
        return {row.model: row.current for row in self._open().state.models()}

    def candidates(self) -> list[Candidate]:
        hosts = 2 if self._settings.standby == "hot" else 1
        found = []
        for installed in self._open().installed():
            kv_bytes = stated_kv_bytes(installed.folder) * self._settings.max_context
            needed = ModelSizes(0, kv_bytes, hosts).needed_bytes("mapped")
            found.append(Candidate(installed.model, needed + COMPILE_BYTES))
        return found

    def ready(self, model: str) -> InstalledModel:
        store = self._open()
        installed = store.model(model)
        damaged = check_version(store, model, installed.version, clock=self._clock, emit=self._emit).damaged
        if damaged:
            raise Damaged(
                f"{model} is damaged in {len(damaged)} places",
                advice="run `kensho repair`; the next request mends it too",
            )
        return installed

    def read_uses(self) -> str:
        return self._open().state.setting(USES_SETTING) or ""

    def write_uses(self, text: str) -> None:
        store = self._open()
        if not store.is_read_only:
            store.state.set_setting(USES_SETTING, text)
