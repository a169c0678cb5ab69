"""Read a model's config.json with types, ranges and a memory of what was read. Pure.

What a reader function did not ask for and is not known to be without effect must not be there: a setting that this
version does not know may change the mathematics, and a guess would answer wrongly without anybody noticing.

    config = ConfigReader(json.loads(...))
    layers = config.integer("num_hidden_layers", 1, 256)
    config.refuse_unread()
"""

from collections.abc import Mapping

from kensho.base.errors import ModelError, UnknownArchitecture

WITHOUT_EFFECT = frozenset(
    """_name_or_path architectures model_type transformers_version torch_dtype dtype use_cache use_bfloat16 torchscript
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id
    initializer_range attention_dropout hidden_dropout cache_implementation chunk_size_feed_forward
    return_dict return_dict_in_generate output_attentions output_hidden_states output_scores
    id2label label2id num_labels problem_type task_specific_params tokenizer_class prefix finetuning_task
    bad_words_ids begin_suppress_tokens suppress_tokens diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size no_repeat_ngram_size exponential_decay_length_penalty length_penalty repetition_penalty
    max_length min_length num_beam_groups num_beams num_return_sequences temperature top_k top_p typical_p
    remove_invalid_values tf_legacy_loss is_decoder unsloth_version unsloth_fixed
    transformers.js_config""".split()  # noqa: SIM905
)
"""Keys of transformers' PretrainedConfig (4.57.6) that do not change the logits of a given sequence of ids."""


class ConfigReader:
    """One JSON object. Each getter marks its name as read. Raises ModelError (absent, wrong type, out of range)."""

    def __init__(self, values: Mapping[str, object], where: str = "config.json") -> None:
        self._values = values
        self._where = where
        self._read: set[str] = set()

    def value(self, name: str) -> object:
        """The raw value, None when absent."""
        self._read.add(name)
        return self._values.get(name)

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        value = self.value(name)
        value = default if value is None else value
        if type(value) is not int or not low <= value <= high:
            raise self._wrong(name, f"an integer from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        value = self.value(name)
        value = default if value is None else value
        # A JSON integer of a thousand digits compares with floats but does not convert: the range is checked first.
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self._wrong(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.value(name)
        value = default if value is None else value
        if type(value) is not bool:
            raise self._wrong(name, "true or false")
        return value

    def section(self, name: str) -> "ConfigReader | None":
        """The JSON object `name`, None when absent or null."""
        value = self.value(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return ConfigReader(value, f"{self._where}: {name}")

    def expect(self, name: str, accepted: tuple[object, ...], default: object) -> None:
        """Only `accepted` values (of the same type) are implemented; anything else is UnknownArchitecture."""
        value = self.value(name)
        value = default if value is None else value
        if not any(type(value) is type(known) and value == known for known in accepted):
            raise self.unknown(name)

    def refuse_unread(self) -> None:
        """UnknownArchitecture for a set value that nobody asked for. Null, false and empty mean `not in use`."""
        for name in sorted(set(self._values) - self._read - WITHOUT_EFFECT):
            if self._values[name] not in (None, False, "", [], {}):
                raise self.unknown(name)

    def unknown(self, name: str) -> UnknownArchitecture:
        """The error for a setting whose mathematics is not implemented."""
        shown = repr(self._values.get(name))[:80]
        return UnknownArchitecture(
            f"{self._where}: {name[:80]} = {shown} is not implemented",
            advice="Kensho refuses rather than guess; see ARCHITECTURE.md for the model families it runs",
            setting=name,
        )

    def _wrong(self, name: str, wanted: str) -> ModelError:
        shown = repr(self._values.get(name))[:80]
        return ModelError(f"{self._where}: {name} is {shown}, not {wanted}", advice="export the model again")
