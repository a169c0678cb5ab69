"""What the status says of each model and of updates, read from the store. Leaves no trace."""

from collections.abc import Sequence

from kensho.app.status import ModelStatus, Updates
from kensho.base.clock import Seconds
from kensho.delivery.checker import Damage
from kensho.delivery.disk import storage_errors
from kensho.delivery.installed import Record, Shortfall
from kensho.delivery.store import InstalledModel, Store
from kensho.delivery.trusted_folder import TrustedFolder


def describe_models(store: Store, damaged: Sequence[Damage], *, now: Seconds) -> tuple[ModelStatus, ...]:
    """Installed models, and those that were wanted and could not be had, by name. `damaged` as `checker.look` says."""
    installed = store.installed()
    shortfalls, records = store.state.shortfalls(), store.state.records()
    names = {model.model for model in installed}
    wrong: dict[str, list[str]] = {}
    for damage in damaged:
        wrong.setdefault(damage.model, []).append(f"{damage.version} {damage.path}")
    found = [
        _describe(store, model, shortfalls.get(model.model), records, wrong.get(model.model, []), now=now)
        for model in installed
    ]
    absent = [_describe_absent(shortfall, names) for model, shortfall in shortfalls.items() if model not in names]
    return tuple(sorted(found + absent, key=lambda status: status.model))


def describe_updates(store: Store, *, now: Seconds) -> Updates | None:
    """None before the first refresh. No network, and tuf is not imported."""
    refreshed = TrustedFolder(store.trusted, store.disk).refreshed()
    if refreshed is None:
        return None
    at_s, expires_s = refreshed.at.timestamp(), refreshed.expires.timestamp()
    return Updates(at_s, expires_s, is_expired=max(now, at_s) >= expires_s)  # a clock set back makes nothing fresh


def _describe(
    store: Store,
    model: InstalledModel,
    shortfall: Shortfall | None,
    records: dict[tuple[int, int], Record],
    wrong: list[str],
    *,
    now: Seconds,
) -> ModelStatus:
    by_digest = {file.digest: file.path for file in model.files}
    lacking = [file for file in model.files if file.used != file.digest]
    instead = "; ".join(
        f"{by_digest[file.used]} instead of {file.path}" if file.used else f"nothing for {file.path}"
        for file in lacking
    )
    # A shortfall of another version says nothing of this one: there was a rollback.
    known = shortfall if shortfall and shortfall.version == model.version else None
    return ModelStatus(
        model=model.model,
        version=model.version,
        previous=model.previous,
        state="damaged" if wrong else "degraded" if lacking else "ready",
        size_bytes=sum(file.size_bytes for file in model.files if file.used),
        reason="; ".join([f"{path} is damaged" for path in wrong] + [f"{f.path}: {f.reason}" for f in lacking]),
        pinned=model.pinned,
        verified_at_s=_verified_at(store, model, records, now=now),
        since_s=(known.since if known else model.installed_at) if lacking else None,
        instead=instead,
        ends=known.ends if known and lacking else "",
    )


def _verified_at(
    store: Store, model: InstalledModel, records: dict[tuple[int, int], Record], *, now: Seconds
) -> Seconds | None:
    times: list[Seconds] = []
    with storage_errors("look at a model", model.folder):
        for file in model.files:
            if file.used is None:
                continue
            found = store.disk.lstat(model.folder / file.path)
            record = records.get((found.st_dev, found.st_ino)) if found else None
            if not (found and record and record.vouches_for(file.used, found, now=now)):
                return None
            times.append(record.verified_at)
    return min(times, default=None)


def _describe_absent(shortfall: Shortfall, installed: set[str]) -> ModelStatus:
    fallback = shortfall.fallback_model if shortfall.fallback_model in installed else None
    return ModelStatus(
        model=shortfall.model,
        version="",
        previous=None,
        state="degraded",
        size_bytes=0,
        reason=f"{shortfall.version} cannot be had ({shortfall.reason})",
        since_s=shortfall.since,
        instead=f"model {fallback} answers" if fallback else "nothing",
        ends=shortfall.ends,
    )
