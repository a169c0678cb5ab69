"""Every error that Kensho raises, in families that say whose fault it is and what helps.

A message has what happened, to what, and what to do next. `code` is a stable word for programs (the CLI prints
it as `error`), `advice` the next step in words; facts are attributes, given as keywords.

    raise NotEnoughSpace("not enough space for model 'voice-2': need 812 MiB, have 300 MiB free in /data",
                         advice="free space or set a fallback", needed_bytes=..., free_bytes=...)

Libraries raise these; only the CLI turns them into exit codes (kensho.cli.exits).
"""

from typing import ClassVar


class KenshoError(Exception):
    """Base of all families. Never raised itself."""

    code: ClassVar[str] = "failure"

    def __init__(self, message: str, *, advice: str = "", **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
        self.facts = facts

    def __str__(self) -> str:
        return f"{self.message}; {self.advice}" if self.advice else self.message


# --- trust: the publisher's signature does not cover this. Never retried, never overridden. ---


class TrustError(KenshoError):
    """A signature, a version that goes back, an expiry, or metadata that is not what was signed."""

    code = "trust_refused"


class ClientTooOld(TrustError):
    """The manifest needs a newer Kensho (row D14); what is installed keeps working."""

    code = "client_too_old"


# --- transport: the bytes could not be had. Retry later or from elsewhere. ---


class TransportError(KenshoError):
    """No source could deliver: unreachable, cut off, too slow, wrong answers. Retrying later may help."""

    code = "network_unavailable"


class NotFoundAtSource(TransportError):
    """The source answered that it has no such file. Another source may."""

    code = "not_found_at_source"


class NetworkNotAllowed(TransportError):
    """The network is needed, and `--no-network` (or the setting) forbids it."""

    code = "network_not_allowed"


class DigestMismatch(TransportError):
    """A source delivered bytes that are not the signed ones. Blame the source, ask another."""

    code = "digest_mismatch"


# --- storage: this machine's disk. Free space, mend, or choose another folder. ---


class StorageError(KenshoError):
    """The store's disk refused: read-only, I/O error, missing folder, a newer store format."""

    code = "storage"


class StoreMissing(StorageError):
    """There is no store in this folder: none was made, or its disk is not mounted now. Nothing is made in its place."""


class NotEnoughSpace(StorageError):
    """Checked before the first byte (row D7): `needed_bytes`, `free_bytes` are facts."""

    code = "no_space"


class Damaged(StorageError):
    """Bytes at rest are not the verified ones and could not be mended now. Nothing damaged is ever used."""

    code = "damaged"


class StoreBusy(StorageError):
    """Another process is changing this store."""

    code = "store_busy"


# --- engine: the thing that computes. Fail over. ---


class EngineError(KenshoError):
    """The engine could not answer. The breaker counts it; another engine may answer."""

    code = "engine"


class EngineCrashed(EngineError):
    """The engine host process ended (exit code or signal in the facts)."""

    code = "engine_crashed"


class EngineHung(EngineError):
    """No progress within the inactivity budget; the host was killed."""

    code = "engine_hung"


class EngineUnkillable(EngineError):
    """The process of an engine did not end after SIGKILL: it is stuck in a driver, and left to the kernel."""

    code = "engine_unkillable"


class WrongNumbers(EngineError):
    """NaN or infinity in the logits, or a canary that answered something else."""

    code = "wrong_numbers"


class NotEnoughMemory(EngineError):
    """The model does not fit: `needed_bytes`, `room_bytes`. Nothing was loaded."""

    code = "not_enough_memory"


class EnginesOff(EngineError):
    """No engine of the model may take a request: their circuits are open, or a person said so. Nothing is known to be
    wrong with the model's files; another model may answer. `retry_after_s` says when one is tried again by itself."""

    code = "engines_off"


class CompileFailed(EngineError):
    """The compile child ended without a graph; `stage` says where."""

    code = "compile_failed"


# --- model: what was given to be run or published is not something Kensho can run. ---


class ModelError(KenshoError):
    """Not a model folder, an unknown architecture, a truncated safetensors file ..."""

    code = "not_a_model"


class UnknownArchitecture(ModelError):
    """config.json names an architecture or a setting whose mathematics is not implemented: refused, not guessed."""

    code = "unknown_architecture"


# --- request: this one request is at fault, for nobody else anything is wrong. Change it. ---


class PoisonRequest(KenshoError):
    """It ended two engine processes, and is refused for an hour."""

    code = "poison_request"


# --- overload: too much asked for. Back off. ---


class Overloaded(KenshoError):
    """Refused politely; `retry_after_s` says when to come back."""

    code = "overloaded"


class DeadlineMissed(Overloaded):
    """The request could not be, or was not, answered by its deadline."""

    code = "deadline"


# --- configuration: the person who set it up. Fix and restart. ---


class ConfigError(KenshoError):
    """A setting, an argument or a file of the user's that cannot be used."""

    code = "config"


class UsageError(ConfigError):
    """An argument or a setting that makes no sense; the command was not begun."""

    code = "usage"


class DaemonRunning(ConfigError):
    """The store has its daemon already; there is one at most."""

    code = "daemon_running"


class NoDaemon(ConfigError):
    """The command speaks to the store's daemon, and none runs."""

    code = "no_daemon"


class PortInUse(ConfigError):
    """Another program listens there."""

    code = "port_in_use"


class NotInstalled(ConfigError):
    """No such model (or version) in the store."""

    code = "not_installed"
