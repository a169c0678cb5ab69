"""What Kensho asks of TUF metadata beyond python-tuf's checks, and its refusals in our words.

- strict JSON: no duplicate keys, floats, NaN or endless integers, so that no two readers see two meanings in it;
- a threshold counts keys, not ids of keys: one key under two ids is one (as in GMS-2022-4197, CVE-2026-23992);
- the name of a delegated role is a part of a file name: quoted, and not too long for one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from securesystemslib.signer import Key
from tuf.api.exceptions import (
    BadVersionNumberError,
    EqualVersionNumberError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import TOP_LEVEL_ROLE_NAMES, Metadata, Root, Targets
from tuf.api.serialization import DeserializationError

from kensho.base.errors import TrustError
from kensho.delivery.strict_json import parse

ADVICE = "what is installed keeps working; tell the publisher"
_EXPIRED_ADVICE = (
    "what is installed keeps working; the publisher must sign anew (`kensho resign`), "
    "unless this machine's clock is wrong"
)
MAX_ROLE_NAME_BYTES = 200
"""Quoted. With version and suffix it stays under the 255 bytes of a file name."""


@contextmanager
def refusing(role: str, origin: str, data: bytes) -> Iterator[None]:
    """Translates python-tuf's refusals, and strict JSON's, into TrustError with `role` and `reason`."""
    try:
        yield
    except EqualVersionNumberError:
        raise
    except (RepositoryError, RecursionError, ValueError) as error:
        raise refusal(error, role, origin, data) from error


def refusal(error: Exception, role: str, origin: str, data: bytes) -> TrustError:
    shown = role if role in TOP_LEVEL_ROLE_NAMES else ascii(role[:80])
    what = f"the {shown} metadata from {origin}"
    match error:
        case ExpiredMetadataError():
            expiry = Metadata.from_bytes(data).signed.expires
            message, reason = f"{what} expired on {expiry:%Y-%m-%d %H:%M} UTC", "expired"
        case UnsignedMetadataError():
            message, reason = f"{what} is not signed by the publisher's {shown} keys", "signature"
        case BadVersionNumberError():
            message, reason = f"{what} has a version that does not follow ({error})", "rollback"
        case LengthOrHashMismatchError():
            message, reason = f"{what} is not the file that the publisher named ({error})", "mismatch"
        case DeserializationError():
            message, reason = f"{what} is not TUF metadata", "malformed"
        case _:
            message, reason = f"{what} is refused ({str(error)[:200]})", "malformed"
    advice = _EXPIRED_ADVICE if reason == "expired" else ADVICE
    return TrustError(message, advice=advice, role=role, reason=reason)


def check_strict_json(data: bytes, role: str, origin: str) -> None:
    """TrustError if the document could be read in two ways. Before anything else: it bounds time and memory, too."""
    try:
        parse(data, what="it", max_bytes=len(data))
    except TrustError as error:
        raise TrustError(
            f"the {role[:80]!a} metadata from {origin} is not TUF metadata: {error.message}",
            advice=ADVICE,
            role=role,
            reason="malformed",
        ) from error


def check_distinct_keys(data: bytes, role: str, delegator: Root | Targets) -> None:
    """UnsignedMetadataError if the signatures of fewer different keys than the threshold are good.

    python-tuf counts ids. Costs nothing for a threshold of 1, else a second verification.
    """
    threshold = delegator.get_delegated_role(role).threshold
    if threshold > 1:
        metadata = Metadata[Targets].from_bytes(data)
        result = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
        distinct = {_public_bytes(key) for key in result.signed.values()}
        if len(distinct) < threshold:
            raise UnsignedMetadataError(f"signed by {len(distinct)} different keys, {threshold} are needed")


def file_name(role: str) -> str:
    """The role as a part of a file name and of an address: without slash, and never one of ours.

    TrustError if it is too long for one, or a name of the four top-level roles.
    """
    quoted = quote(role, safe="", errors="surrogatepass")
    if not role or role in TOP_LEVEL_ROLE_NAMES or len(quoted) > MAX_ROLE_NAME_BYTES:
        raise TrustError(
            f"the name of the delegated role {role[:80]!a} cannot be used",
            advice=ADVICE,
            role=role,
            reason="malformed",
        )
    return quoted


def _public_bytes(key: Key) -> str:
    """The key itself, however its text is wrapped."""
    public = str(key.to_dict()["keyval"].get("public", ""))
    lines = [line.strip() for line in public.splitlines() if not line.startswith("-----")]
    return "".join(lines) if "-----BEGIN" in public else public.strip().lower()
