"""What is wrong, in words, each with a fix. Looks, changes nothing."""

import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime

from kensho.app.kensho import Kensho
from kensho.app.remembered import giving_back, look_at_circuits
from kensho.base.errors import KenshoError
from kensho.base.structs import Struct
from kensho.base.units import size_text

LOW_SPACE_BYTES = 2 << 30
"""A guess: an update of a small model and its graph."""


MAX_READING_DAYS = 30
"""As long as a verification record is believed."""


class Check(Struct):
    name: str
    is_ok: bool
    found: str
    advice: str = ""


def examine(app: Kensho) -> list[Check]:
    """All checks, in the order in which they build on each other. Tries the source if the network is allowed."""
    checks = [_attempt(name, look, app) for name, look in (("python", _python), ("engine", _engine), ("space", _space))]
    checks.append(_attempt("store", _store, app))
    if checks[-1].is_ok:
        looks = {"models": _models, "engines": _engines, "readings": _readings, "updates": _updates, "source": _source}
        checks += [_attempt(name, look, app) for name, look in looks.items()]
    return checks


def _attempt(name: str, look: Callable[[Kensho], Check], app: Kensho) -> Check:
    try:
        return look(app)
    except KenshoError as error:
        return Check(name, False, error.message, error.advice)


def _python(app: Kensho) -> Check:
    del app
    is_ok = sys.platform == "linux" and sys.version_info >= (3, 11)
    return Check("python", is_ok, f"{sys.version.split()[0]} on {sys.platform}", "use Python 3.11 or newer on Linux")


def _engine(app: Kensho) -> Check:
    del app
    from kensho.runtime.system.machine import read_machine

    machine = read_machine()
    found = f"ONNX Runtime {machine.engine_version} on {machine.arch} ({', '.join(machine.cpu_features) or 'plain'})"
    return Check("engine", True, found)


def _space(app: Kensho) -> Check:
    folder = app.settings.store
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return Check("space", free >= LOW_SPACE_BYTES, f"{size_text(free)} free in {folder}", "free some space")


def _store(app: Kensho) -> Check:
    status = app.status()
    is_ok = status.state != "storage-missing"
    return Check("store", is_ok, str(app.settings.store) if is_ok else status.sentence, "run kensho init")


def _models(app: Kensho) -> Check:
    status = app.status()
    ends = next((model.ends for model in status.models if model.state == "degraded" and model.ends), "run kensho pull")
    advice = {"damaged": "run kensho repair", "degraded": ends}.get(status.state, "run kensho pull MODEL")
    return Check("models", status.state == "ready", status.sentence, advice)


def _engines(app: Kensho) -> Check:
    """What circuits remember: an engine that is off stays so over every start."""
    off = [circuit for circuit in look_at_circuits(app.settings.store) if circuit.is_off]
    if not off:
        return Check("engines", True, "no engine is remembered as off")
    found = "; ".join(f"{each.engine} of {each.model} is {each.state} ({each.reason})" for each in off)
    return Check("engines", False, found, off[0].advice or giving_back(off[0].model, off[0].engine))


def _readings(app: Kensho) -> Check:
    """Whether every byte was read lately: rot shows in no stat."""
    advice = "run kensho verify --full, or let an application that stays scrub (setting scrub)"
    if not app.status().models:
        return Check("readings", True, "nothing is installed")
    read = [check for check in app.status().checks if check.kind in ("full", "scrub")]
    if not read:
        return Check("readings", True, f"no full reading of all bytes yet; to have one, {advice}")
    days = (app.now().timestamp() - read[0].at_wall_s) / 86400
    found = f"every byte was last read {days:.1f} days ago ({read[0].kind})"
    return Check("readings", days <= MAX_READING_DAYS, found, advice)


def _updates(app: Kensho) -> Check:
    updates = app.status().updates
    if updates is None:
        return Check("updates", True, "no metadata yet: nothing was pulled")
    day = datetime.fromtimestamp(updates.expires_at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    if not updates.is_expired:
        return Check("updates", True, f"the metadata is good until {day}")
    advice = "run kensho pull; if that is refused too, the publisher must run kensho resign, or this clock is wrong"
    return Check(
        "updates", False, f"the metadata expired on {day}: updates are refused, what is installed works", advice
    )


def _source(app: Kensho) -> Check:
    if not app.settings.network:
        return Check("source", True, "not tried: the network is not allowed")
    newest = ", ".join(f"{ref.model} {ref.version}" for ref in app.published())
    return Check("source", True, f"reachable and signed; it has {newest or 'no model'}")
