"""Staged roll-out: which machines get a release first. Pure; the same answer every time, with nobody to ask.

The manifest, which is signed, has a percentage and a salt. A machine hashes the salt with an id of its own that never
leaves it, and so knows its place in a line of a hundred. The line is another one for each salt (by default for each
release), so that it is not always the same machines that try first. Raising the percentage only ever adds machines.
"""

import hashlib


def is_in_rollout(percent: int, salt: str, client_id: str) -> bool:
    """Whether the machine `client_id` gets a release that is rolled out to `percent` (0 to 100) of the machines.

    The place is SHA-256(salt, NUL, id) as a fraction of its range: uniform over ids. 0 is nobody, 100 everybody.
    """
    digest = hashlib.sha256(f"{salt}\0{client_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") * 100 >> 64 < percent
