"""End an answer where one of its stop strings begins. Pure: pieces of text in, what may be shown out.

    scan = StopScanner(("\\n\\n", "END"))
    shown = scan.push(piece)            # never a part of a stop string; what could become one is held back
    if scan.is_stopped: ...             # a stop string came; it and what follows is not shown
    rest = scan.finish()                # the answer ended by itself: what was held back

Cost: each piece is compared with the stop strings over its own length and theirs.
"""

from collections.abc import Sequence


class StopScanner:
    """One answer. `is_stopped` once a stop string has come."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.is_stopped = False

    def push(self, piece: str) -> str:
        """The text that is certain to be part of the answer, in order; nothing after a stop."""
        if self.is_stopped:
            return ""
        text = self._held + piece
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            self._held = ""
            return text[: min(found)]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """What was held back for a stop string that did not come."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
