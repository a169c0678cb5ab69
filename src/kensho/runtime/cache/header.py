"""The envelope of a compiled graph: what it was made from, by what, for which machine, and the hash of every byte.

An entry is a folder of `graph.onnx`, `weights.bin` and `header.json`. The header is canonical JSON (sorted keys, no
spaces, ASCII, integers only) in the form `{"body": {...}, "sha256": "<of the body>"}`; a header with one changed byte
never parses. No engine checks its own cache in this way: one flipped bit in OpenVINO's blob or in ONNX Runtime's
external data is loaded and answers something else, which is why Kensho has this file.

Rules: (1) nothing is believed before the SHA-256 fits; (2) a newer major format is refused and left alone, a newer
minor one may carry fields that are ignored, an older one is read through `header_migrations`; (3) every size is
bounded; (4) the sections of a file tile it, so that `graph_hashing` covers padding too. The standard library only: this
is read on the start path.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from kensho.base.errors import Damaged, KenshoError, TrustError
from kensho.base.ids import Digest, GraphKey, digest_of, parse_digest
from kensho.base.structs import Struct, as_dict
from kensho.runtime.cache.header_migrations import MIGRATIONS, migrate
from kensho.runtime.model.strict_fields import Fields, check_integer

FORMAT = (2, 0)
"""(major, minor) written by this version. 1.0 was the first; 1.1 added `speeds` and the section `mixed`; 2.0 says what
a section is for in its `role`."""
HEADER_FILE = "header.json"
GRAPH_FILE = "graph.onnx"
WEIGHTS_FILE = "weights.bin"
Role = Literal["graph", "mixed", "table", "weights"]
"""graph.onnx is the graph, followed by what makes it one for the mixed tier (`graph_ops.extra_input`). A table of
weights.bin is the embedding or the head, which the mixed tier reads in place; weights: everything else."""
GRAPH_SECTION: Role = "graph"
MIXED_SECTION: Role = "mixed"
TABLE_SECTION: Role = "table"
BLOCK_BYTES = 4 * 1024 * 1024
"""What one SHA-256 of a section covers; also the piece in which files are read for hashing."""
MAX_HEADER_BYTES = 4 * 1024 * 1024
"""Guess: room for 60 000 blocks (240 GB of weights)."""

COMPILER = 2
"""Rises when the compiler writes other bytes or other mathematics for the same input: old entries then miss."""
RECIPE = "int8-rows"
"""Weights int8 per output channel stored [K, N]; activations quantised per row; tied table stored once."""
RECIPE_VERSION = 1
ENGINE = "onnxruntime"
DEFAULT_MAX_POSITIONS = 4096
"""Context that graphs are made for unless asked otherwise: 8 MB of rope tables for 270M; 32768 would be 67 MB."""


class KeyFields(Struct):
    """All that decides the bytes of a compiled graph, and nothing volatile: two equal values may share an entry.

    `cpu_features` because the form of the graph is chosen and self-tested on this machine's instructions.
    """

    weights_digest: Digest
    """SHA-256 of model.safetensors; of several shards: of their digests, see `join_digests`."""
    config_digest: Digest
    tokenizer_digest: Digest
    engine_version: str
    arch: str
    system: str
    cpu_features: tuple[str, ...]
    max_positions: int
    """The longest context the graph is made for; the model's own limit, when lower, still holds."""
    engine: str = ENGINE
    recipe: str = RECIPE
    recipe_version: int = RECIPE_VERSION
    compiler: int = COMPILER


class Section(Struct):
    """A run of bytes of one file with the SHA-256 of each 4 MiB block of it (the last one may be shorter)."""

    name: str
    """The tensor's, for people; the first one's of several."""
    role: Role
    file: str
    offset: int
    size_bytes: int
    blocks: tuple[Digest, ...]


class SelfTestVector(Struct):
    """What the graph answered on the machine that made it: ids fed in one prefill, then greedily one by one.

    `expected_micro[i]` is the logit of `expected_ids[i]` in millionths; another session over the same file must come
    within `tolerance_micro` of it (`self_test.check_session`).
    """

    prompt_ids: tuple[int, ...]
    expected_ids: tuple[int, ...]
    expected_micro: tuple[int, ...]
    tolerance_micro: int


class FormSpeed(Struct):
    """The processor time of one token when the form was chosen, on the mapped tier of the machine that compiled."""

    form: str
    decode_us: int


class GraphHeader(Struct):
    """Everything known about a compiled graph. Times: `created` RFC 3339 UTC, `compile_ms` wall milliseconds."""

    model: str
    version: str
    schema: Digest
    """SHA-256 of the architecture (family, sizes, layer kinds): the shape of inputs, outputs and KV cache."""
    key: KeyFields
    form: str
    """How activations are quantised: `u8` and `s8` (256 levels) or `u7` (128, for CPUs whose u8 x s8 sums saturate)."""
    vocab_size: int
    kv_bytes_per_position: int
    """Memory that one token of context costs, all layers."""
    sections: tuple[Section, ...]
    self_test: SelfTestVector
    created: str
    compile_ms: int
    speeds: tuple[FormSpeed, ...] = ()
    """The correct forms that were measured, the chosen one among them; empty where a header 1.0 did not say."""
    format: tuple[int, int] = FORMAT

    @property
    def size_bytes(self) -> int:
        """Bytes of the files that the sections describe (the header itself not counted)."""
        return sum(section.size_bytes for section in self.sections)

    def section(self, role: Role) -> Section | None:
        """The first section of this role."""
        return next((section for section in self.sections if section.role == role), None)

    def bytes_of(self, role: Role) -> int:
        return sum(section.size_bytes for section in self.sections if section.role == role)


def graph_key(fields: KeyFields) -> GraphKey:
    """The content key: SHA-256 of the canonical fields. Equal content on equal machines gives equal keys."""
    return GraphKey(hashlib.sha256(_canonical(as_dict(fields))).hexdigest())


def differing_fields(old: KeyFields, new: KeyFields) -> tuple[str, ...]:
    """Names of the key fields that differ: the reason of a miss, for the log (a storm of recompiles has a cause)."""
    before, after = as_dict(old), as_dict(new)
    return tuple(name for name in before if before[name] != after[name])


def join_digests(digests: Mapping[str, Digest]) -> Digest:
    """One digest for several files: the file's own when there is one, else of the sorted `name digest` lines."""
    if len(digests) == 1:
        return next(iter(digests.values()))
    return digest_of("".join(f"{name} {digest}\n" for name, digest in sorted(digests.items())).encode())


def dump_header(header: GraphHeader) -> bytes:
    """The bytes of header.json. Stable: equal headers give equal bytes."""
    body = as_dict(header)
    return _canonical({"body": body, "sha256": hashlib.sha256(_canonical(body)).hexdigest()})


def read_header(folder: Path) -> GraphHeader:
    """The header of the entry in `folder`, hash checked, well under a millisecond. Raises Damaged (drop the entry)."""
    try:
        with (folder / HEADER_FILE).open("rb") as file:
            return parse_header(file.read(MAX_HEADER_BYTES + 1))
    except OSError as error:
        raise _refuse(f"header of {folder.name} cannot be read ({error.strerror})", "unreadable") from error


def parse_header(data: bytes) -> GraphHeader:
    """A header from its bytes. Raises Damaged; `facts["reason"]` is `damaged`, `format_newer` or `format_older`.

    `format_newer` was written by a later Kensho: leave the entry alone and compile under another name.
    """
    if len(data) > MAX_HEADER_BYTES:
        raise _refuse(f"graph header of more than {MAX_HEADER_BYTES} bytes", "damaged")
    try:
        document = json.loads(data, parse_float=_no_float, parse_constant=_no_float)
        outer = Fields(document, ("body", "sha256"))
        body = outer.value("body")
        # Comparing with the canonical form also refuses double keys, spaces and anything after the document.
        if _canonical(document) != data or hashlib.sha256(_canonical(body)).hexdigest() != outer.text("sha256"):
            raise ValueError("its SHA-256 does not fit")
        return _parse_body(body)
    except (ValueError, TypeError, KeyError, RecursionError, TrustError) as error:
        raise _refuse(f"graph header is damaged: {error}", "damaged") from error


_KEY_FIELDS = tuple(KeyFields.__struct_fields__)
_BODY_FIELDS = tuple(GraphHeader.__struct_fields__)


def _parse_body(document: object) -> GraphHeader:
    if not isinstance(document, dict):
        raise TypeError("the body is missing")
    major, minor = _parse_format(document.get("format"))
    if major > FORMAT[0] or any(number not in MIGRATIONS for number in range(major, FORMAT[0])):
        reason = "format_newer" if major > FORMAT[0] else "format_older"
        raise _refuse(f"compiled graph has format {major}.{minor}, this Kensho reads {FORMAT[0]}", reason)
    document = migrate(document, major, FORMAT[0])
    found = _parse_format(document["format"])
    may_have_more = found[1] > FORMAT[1]
    body = Fields(document, _BODY_FIELDS, may_have_more=may_have_more)
    return GraphHeader(
        format=found,
        model=body.text("model"),
        version=body.text("version"),
        schema=body.digest("schema"),
        key=_parse_key(Fields(body.value("key"), _KEY_FIELDS, may_have_more=may_have_more)),
        form=body.text("form"),
        vocab_size=body.integer("vocab_size"),
        kv_bytes_per_position=body.integer("kv_bytes_per_position"),
        sections=_check_tiling(tuple(_parse_section(item, may_have_more) for item in body.items("sections"))),
        self_test=_parse_self_test(body.value("self_test"), may_have_more),
        created=body.text("created"),
        compile_ms=body.integer("compile_ms"),
        speeds=tuple(_parse_speed(item, may_have_more) for item in body.items("speeds")),
    )


def _parse_format(version: object) -> tuple[int, int]:
    if not isinstance(version, list) or len(version) != 2:
        raise ValueError("the format version is missing")
    return check_integer(version[0], "format"), check_integer(version[1], "format")


def _parse_key(fields: Fields) -> KeyFields:
    features = [Fields({"feature": item}, ("feature",)).text("feature") for item in fields.items("cpu_features")]
    return KeyFields(
        weights_digest=fields.digest("weights_digest"),
        config_digest=fields.digest("config_digest"),
        tokenizer_digest=fields.digest("tokenizer_digest"),
        engine_version=fields.text("engine_version"),
        arch=fields.text("arch"),
        system=fields.text("system"),
        cpu_features=tuple(features),
        max_positions=fields.integer("max_positions"),
        engine=fields.text("engine"),
        recipe=fields.text("recipe"),
        recipe_version=fields.integer("recipe_version"),
        compiler=fields.integer("compiler"),
    )


def _parse_section(document: object, may_have_more: bool) -> Section:
    fields = Fields(document, tuple(Section.__struct_fields__), may_have_more=may_have_more)
    section = Section(
        name=fields.text("name"),
        role=_parse_role(fields.text("role")),
        file=fields.text("file"),
        offset=fields.integer("offset"),
        size_bytes=fields.integer("size_bytes"),
        blocks=tuple(parse_digest(block) for block in fields.items("blocks")),
    )
    if section.file not in (GRAPH_FILE, WEIGHTS_FILE):
        raise ValueError(f"section {section.name} is in another file")
    if len(section.blocks) != -(-section.size_bytes // BLOCK_BYTES):
        raise ValueError(f"section {section.name} has the wrong number of blocks")
    return section


def _parse_role(text: str) -> Role:
    for role in get_args(Role):
        if role == text:
            known: Role = role
            return known
    raise ValueError(f"a section for {text[:20]!r}")


def _parse_speed(document: object, may_have_more: bool) -> FormSpeed:
    fields = Fields(document, tuple(FormSpeed.__struct_fields__), may_have_more=may_have_more)
    return FormSpeed(fields.text("form"), fields.integer("decode_us"))


def _check_tiling(sections: tuple[Section, ...]) -> tuple[Section, ...]:
    ends = {GRAPH_FILE: 0, WEIGHTS_FILE: 0}
    for section in sections:
        if section.offset != ends[section.file]:
            raise ValueError(f"section {section.name} leaves a gap or overlaps")
        ends[section.file] += section.size_bytes
    if not all(ends.values()):
        raise ValueError("a file without section")
    return sections


def _parse_self_test(document: object, may_have_more: bool) -> SelfTestVector:
    fields = Fields(document, tuple(SelfTestVector.__struct_fields__), may_have_more=may_have_more)
    vector = SelfTestVector(
        prompt_ids=fields.integers("prompt_ids"),
        expected_ids=fields.integers("expected_ids"),
        expected_micro=fields.integers("expected_micro"),
        tolerance_micro=fields.integer("tolerance_micro"),
    )
    if not vector.prompt_ids or len(vector.expected_ids) != len(vector.expected_micro):
        raise ValueError("the self-test is empty or uneven")
    return vector


def _canonical(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _no_float(text: str) -> object:
    raise ValueError(f"a number that is no integer: {text[:20]}")


def _refuse(message: str, reason: str, **facts: object) -> KenshoError:
    return Damaged(message, advice="the entry is dropped and the model compiled again", reason=reason, **facts)
