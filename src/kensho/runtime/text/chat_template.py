"""Put a question or a conversation into the form that a model was trained on, by the template that came with it.

Templates are programs of the publisher's (Jinja, as Hugging Face writes them), run in Jinja's immutable sandbox with
nothing but the messages: no files, no imports, no attributes that begin with `_`, at most 1 MiB of text out.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kensho.base.errors import ConfigError, ModelError
from kensho.base.structs import Struct

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_TEMPLATE_CHARS = 256 * 1024
MAX_OUTPUT_CHARS = 1024 * 1024


class ChatPieces(Struct):
    """A template's whole effect on one question: text before it and after it (`tokenizer.chat_pieces` proves it)."""

    before: str
    after: str
    is_trimmed: bool
    """White space at the question's ends is dropped."""

    def render(self, question: str) -> str:
        """What the template would write. The question is text here and nothing else: no Jinja reads it."""
        return f"{self.before}{question.strip() if self.is_trimmed else question}{self.after}"


def render_question(template: str, question: str, tokens: Mapping[str, str]) -> str:
    """The prompt text for one user turn, up to where the model's answer begins.

    `tokens` are bos_token, eos_token ... as the template may write them. Special tokens that the question itself
    spells out are not removed. Raises ModelError for a template that fails or writes without end. The first call
    imports jinja2 (about 30 ms).
    """
    return _render(template, [{"role": "user", "content": question}], tokens)


def render_messages(template: str, messages: Sequence[Mapping[str, str]], tokens: Mapping[str, str]) -> str:
    """The prompt text for a conversation: messages with `role` and `content`, the last one to be answered.

    Raises ConfigError where the template fails: many take the roles in one order only, or know no `system`.
    """
    try:
        return _render(template, list(messages), tokens)
    except ModelError as error:
        raise ConfigError(
            f"the messages do not fit the model: {error.message}", advice="check their roles and their order"
        ) from error


def template_environment() -> "ImmutableSandboxedEnvironment":
    """The sandbox, with the options that transformers renders with: templates are written for them."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: object) -> str:
        raise TemplateError(str(message))

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = raise_exception
    return environment


def _render(template: str, messages: list[Mapping[str, str]], tokens: Mapping[str, str]) -> str:
    if len(template) > MAX_TEMPLATE_CHARS:
        raise _refused(f"has {len(template)} characters, {MAX_TEMPLATE_CHARS} at most")
    parts, length = [], 0
    try:
        compiled = template_environment().from_string(template)
        for part in compiled.generate(messages=messages, add_generation_prompt=True, **tokens):
            parts.append("".join((part,)))  # a plain str, whatever the template was given
            length += len(parts[-1])
            if length > MAX_OUTPUT_CHARS:
                raise _refused(f"writes more than {MAX_OUTPUT_CHARS} characters")
    except ModelError:
        raise
    # A template can fail like any program: TypeError, OverflowError, RecursionError ...
    except Exception as error:
        raise _refused(f"failed ({type(error).__name__}: {str(error)[:200]})") from error
    return "".join(parts)


def _refused(why: str) -> ModelError:
    return ModelError(f"the model's chat template {why}", advice="use --raw-prompt, or tell the model's publisher")
