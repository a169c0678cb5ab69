"""Read one file of a model's newest release back from a repository: what was made once need not be made again."""

from pathlib import Path

from kensho.base.errors import KenshoError
from kensho.base.ids import digest_of
from kensho.delivery.disk import RealDisk
from kensho.delivery.layout import chunk_list_target, pack_path
from kensho.delivery.manifest import parse_chunk_list, parse_manifest
from kensho.delivery.packs import decode_chunk
from kensho.delivery.repository import Repository


def read_published(repo: Path, model: str, path: str, *, max_bytes: int) -> bytes | None:
    """Its bytes, verified against the signed metadata. None if it is not to be had, whatever the reason."""
    try:
        repository = Repository.open(repo, None, RealDisk())
        newest = next(ref for ref in repository.releases() if ref.model == model)
        manifest = parse_manifest(repository.read_target(newest.target))
        file = next(file for file in manifest.files if file.path == path and file.size_bytes <= max_bytes)
        chunks = parse_chunk_list(repository.read_target(chunk_list_target(model, file.chunk_list)), file)
        found = bytearray()
        for chunk in chunks.chunks:
            with (repo / pack_path(chunk.pack)).open("rb") as pack:
                pack.seek(chunk.pack_offset)
                found += decode_chunk(pack.read(chunk.encoded_bytes), chunk)
    except (KenshoError, OSError, StopIteration):
        return None
    data = bytes(found)
    return data if digest_of(data) == file.digest else None
