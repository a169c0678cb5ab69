"""Exit codes: a contract. One table from error families to codes; the CLI is the only place that exits."""

from kensho.base import errors

OK = 0
FAILURE = 1
USAGE = 2
DEGRADED = 3
DAMAGED = 4
TRUST_REFUSED = 5
NO_SPACE = 6
NO_NETWORK = 7
NO_DAEMON = 8
OVERLOADED = 9
INTERRUPTED = 130

_TABLE: tuple[tuple[type[errors.KenshoError], int], ...] = (
    # first match wins: the special before the general
    (errors.TrustError, TRUST_REFUSED),
    (errors.DigestMismatch, TRUST_REFUSED),  # of the transport family, because another source may have the right bytes
    (errors.TransportError, NO_NETWORK),
    (errors.NotEnoughSpace, NO_SPACE),
    (errors.Damaged, DAMAGED),
    (errors.Overloaded, OVERLOADED),
    (errors.UsageError, USAGE),
    (errors.NoDaemon, NO_DAEMON),
)


def exit_code(error: errors.KenshoError) -> int:
    """The exit code for an error: by family; what the table does not name is a plain failure."""
    return next((code for family, code in _TABLE if isinstance(error, family)), FAILURE)
