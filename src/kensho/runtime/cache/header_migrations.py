"""Headers of older formats, brought to this one step by step: a format that changes costs no compile. Pure.

`MIGRATIONS[n]` takes the body of a header of major format n, as parsed JSON, to the body of format n + 1. It may only
say anew what the old header said, or what follows from it: what graph.onnx and weights.bin hold is the key's business
(`header.COMPILER`), and an entry whose files would have to change is another entry.

A header is migrated each time it is read, in microseconds, and never rewritten: its hash stays the compiler's, its
pins stay on its inode, and an older Kensho on the same disk (after a rollback of the program) goes on using the entry.

A step takes a body that is hashed right and can still be nonsense (a faulty or hostile writer): it raises ValueError,
TypeError or KeyError then, and what it returns is checked field by field like a header of today.
"""

from collections.abc import Callable, Mapping

Body = Mapping[str, object]
Migration = Callable[[Body], Body]


def migrate(body: Body, major: int, target: int) -> Body:
    """The body in format `target`, which is not below `major`. KeyError where a step is missing."""
    for number in range(major, target):
        body = MIGRATIONS[number](body)
    return body


def _roles(body: Body) -> Body:
    """2.0: what a section is for stands in its `role`. In 1.x it was known by its name; 1.0 had no `speeds`."""
    sections = body["sections"]
    if not isinstance(sections, list):
        raise TypeError("sections is not a list")
    return {
        **body,
        "format": [2, 0],
        "speeds": body.get("speeds", []),
        "sections": [{**section, "role": _ROLE_OF_NAME.get(section["name"], "weights")} for section in sections],
    }


_ROLE_OF_NAME = {
    "graph": "graph",
    "mixed": "mixed",
    # All tables of the families of that time.
    "lm_head.weight": "table",
    "model.embed_tokens.weight": "table",
}
MIGRATIONS: Mapping[int, Migration] = {1: _roles}
