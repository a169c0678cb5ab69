"""Effective settings: command line over environment over configuration file over defaults.

The only file that reads the environment. A configuration file is TOML with the names of `Settings` as keys (times in
seconds); an unknown key or a value of the wrong kind is refused by name, so that a typing error never silently means
"default".
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from kensho.base.child_env import child_env
from kensho.base.clock import Seconds
from kensho.base.errors import UsageError
from kensho.base.ids import check_name
from kensho.base.structs import Struct, field

TierChoice = Literal["auto", "raw", "mapped", "mixed", "packed"]
StandbyChoice = Literal["hot", "on_demand"]
IsolationChoice = Literal["process", "none"]

MAX_CONFIG_BYTES = 64 * 1024


class Settings(Struct, kw_only=True):
    """Everything that can be chosen. Units are in the names."""

    store: Path
    """Folder of the store: one per machine, shared by several applications."""
    network: bool = True
    """False: no connection is ever tried; what needs one fails with exit code 7."""
    proxy: str | None = None
    """Proxy URL for http(s) sources."""
    connections: int = 4
    """Parallel range requests of a pull, 1 to 16."""
    pull_jitter_s: Seconds = 0.0
    """A pull first waits a random time in [0, this): for machines that all pull by the same clock."""
    scrub: bool = False
    """An application that stays (`async with`) reads every stored byte again in the background, and mends damage."""
    scrub_period_s: Seconds = 7 * 86400.0
    """Within which the scrub reads every byte again, 1 s to a year."""
    tier: TierChoice = "auto"
    """raw = exact, from the delivered weights; mapped = int8 read in place; packed = int8 prepacked in memory."""
    standby: StandbyChoice = "hot"
    """hot = a second engine host is loaded beside the first; on_demand = it is started when the first fails."""
    isolation: IsolationChoice = "process"
    """process = each engine is a child process, whose crash or hang costs one request; none = engines are threads
    of this process, for scripts (the standby is then started on demand)."""
    threads: int = 0
    """Threads of one engine host; 0 = as many as this process may use, at most 4."""
    max_context: int = 2048
    """Tokens of prompt and answer together, 16 to 32768; bounded by the model's own limit."""
    inactivity_s: Seconds = 30.0
    """An engine that makes no token for so long is taken for hung, and its process is killed."""
    start_timeout_s: Seconds = 120.0
    """A host that is not ready after so long is killed."""
    restart_open_s: Seconds = 5.0
    """How long a circuit waits after a start that failed. (After a crash the first new start is at once.)"""
    open_s: Seconds = 60.0
    """How long a circuit stays open at first; doubles each time, up to 15 minutes."""
    failure_threshold: int = 3
    """Weighted failures of an engine in a row that open its circuit, 1 to 100."""
    success_threshold: int = 2
    """Canaries that must pass before a circuit closes, 1 to 100."""
    canary_timeout_s: Seconds = 5.0
    """Strict time-out of the half-open test."""
    graph_cache_bytes: int = 8 << 30
    """Bound of the graph cache on disk."""
    model_memory_bytes: int = 0
    """Memory that all loaded models may take together; 0 = what the machine and its cgroup leave."""
    warm: tuple[str, ...] = ()
    """Models that an application which stays (`async with`) loads ahead of their first request, and keeps."""
    warm_up: bool = False
    """It also loads the models that were asked most at this hour of the day before; nothing is closed for them."""
    allow_faults: bool = False
    """Engine hosts accept `kensho fault` (rehearsal of failures)."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    http_host: str = "127.0.0.1"
    """Address that the daemon's HTTP server listens on."""
    http_port: int = 8420
    """Its port; 0 = any free one."""
    http_names: tuple[str, ...] = ()
    """Names by which clients may call it, beside localhost and its addresses: the `Host` header is checked."""
    http_remote: bool = False
    """It may listen on an address that other machines reach: whoever reaches it may use every model."""
    stop_s: Seconds = 5.0
    """How long a daemon that stops lets running answers finish."""
    config: str = ""
    """The configuration file that was read; empty: none."""
    tasks: Mapping[str, tuple[str, ...]] = field(factory=dict)
    """Names of tasks, each with its models in order of preference. In a configuration file: a table [tasks]."""
    child_env: Mapping[str, str] = field(factory=dict)
    """The environment that child processes get: chosen variables only."""


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "tier": get_args(TierChoice),
    "standby": get_args(StandbyChoice),
    "isolation": get_args(IsolationChoice),
    "log_level": ("debug", "info", "warning", "error"),
}
_RANGES: Mapping[str, tuple[float, float]] = {
    "connections": (1, 16),
    "pull_jitter_s": (0, 86400),
    "scrub_period_s": (1, 366 * 86400),
    "threads": (0, 256),
    "max_context": (16, 32768),
    "inactivity_s": (0.05, 3600),
    "start_timeout_s": (0.1, 3600),
    "restart_open_s": (0.01, 3600),
    "open_s": (0.01, 3600),
    "failure_threshold": (1, 100),
    "success_threshold": (1, 100),
    "canary_timeout_s": (0.01, 60),
    "http_port": (0, 65535),
    "stop_s": (0, 3600),
    "graph_cache_bytes": (0, 1 << 50),
    "model_memory_bytes": (0, 1 << 50),
}


def load_settings(
    overrides: Mapping[str, object],
    environ: Mapping[str, str] | None = None,
    *,
    defaults: Mapping[str, object] | None = None,
) -> Settings:
    """Settings from `overrides` (None = not given), the environment and the file named by override `config`; where
    nobody says anything, `defaults` of the caller's, then those of `Settings`.

    Raises UsageError for an unknown name, a value of the wrong kind or out of range, or a file that cannot be read.
    """
    environ = os.environ if environ is None else environ
    given = {key: value for key, value in overrides.items() if value is not None and key != "config"}
    config = overrides.get("config") or environ.get("KENSHO_CONFIG")
    from_file = _read_config(Path(str(config))) if config else {}
    values: dict[str, object] = {"store": _default_store(environ), "proxy": _proxy(environ)}
    values |= (
        {**(defaults or {}), **from_file}
        | ({"store": environ["KENSHO_STORE"]} if environ.get("KENSHO_STORE") else {})
        | given
    )
    for key, value in values.items():
        _check(key, value)
    values["config"] = str(config or "")
    tasks: Mapping[str, Sequence[str]] = values.get("tasks", {})  # type: ignore[assignment]  # checked above
    values["tasks"] = {task: tuple(models) for task, models in tasks.items()}
    for name in ("http_names", "warm"):
        values[name] = tuple(values.get(name, ()))  # type: ignore[arg-type]  # checked above
    values["store"] = Path(str(values["store"])).expanduser().absolute()
    values["child_env"] = child_env(environ)
    return Settings(**values)  # type: ignore[arg-type]  # every value was checked against its field


def _default_store(environ: Mapping[str, str]) -> str:
    home = environ.get("HOME") or "."
    return str(Path(environ.get("XDG_DATA_HOME") or Path(home) / ".local" / "share") / "kensho")


def _proxy(environ: Mapping[str, str]) -> str | None:
    names = ("https_proxy", "HTTPS_PROXY", "http_proxy", "all_proxy", "ALL_PROXY")
    return next((environ[name] for name in names if environ.get(name)), None)


def _read_config(path: Path) -> dict[str, object]:
    import tomllib  # few have a file, and it costs all the others 5 ms

    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise UsageError(f"configuration file {path} is larger than 64 KiB", advice="give another file")
        return tomllib.loads(data.decode())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"configuration file {path} cannot be read: {error}", advice="mend it or give another"
        ) from error


def _check(key: str, value: object) -> None:
    names = {name: kind for name, kind in Settings.__annotations__.items() if name not in ("config", "child_env")}
    if key not in names:
        raise UsageError(f"unknown setting {key!r}", advice="known are: " + ", ".join(names))
    if key in _CHOICES and value not in _CHOICES[key]:
        raise UsageError(f"setting {key} cannot be {value!r}", advice="use one of: " + ", ".join(_CHOICES[key]))
    if key in _RANGES:
        low, high = _RANGES[key]
        wanted = (int,) if names[key] in (int, "int") else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted) or not low <= value <= high:
            raise UsageError(f"setting {key} cannot be {value!r}", advice=f"use a number from {low:g} to {high:g}")
    elif names[key] in (bool, "bool") and not isinstance(value, bool):
        raise UsageError(f"setting {key} cannot be {value!r}", advice="use true or false")
    elif key == "tasks":
        lists = value.values() if isinstance(value, Mapping) else [()]
        if not all(isinstance(models, list | tuple) and models and set(map(type, models)) == {str} for models in lists):
            raise UsageError(f"setting {key} cannot be {value!r}", advice='use a table of lists: chat = ["dialogue"]')
        for task in value if isinstance(value, Mapping) else ():
            check_name(str(task), "name in [tasks]")  # asked for as models are: another name would never be found
    elif key in ("http_names", "warm"):
        if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
            raise UsageError(f"setting {key} cannot be {value!r}", advice='use a list of names: ["kiosk-7"]')
    elif key in ("store", "proxy", "http_host") and not isinstance(value, str | Path | None):
        raise UsageError(f"setting {key} cannot be {value!r}", advice="use text")
