"""Why tables are not made for a tokenizer, or not used: one short reason in words. Never the user's problem.

In both cases the `tokenizers` library serves the model; `reason` goes into an event, so that somebody can know why.
"""

from kensho.base.errors import Damaged, ModelError


class NotCovered(ModelError):
    """Tables cannot say what this tokenizer says."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"no tokenizer tables: {reason}", advice="the tokenizers library serves this model")
        self.reason = reason


class TablesRefused(Damaged):
    """These tables cannot be used: damaged, of another format, or made for other files. They are made anew."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"tokenizer tables refused: {reason}", advice="the tokenizers library serves this model")
        self.reason = reason
