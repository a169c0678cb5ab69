"""kensho.delivery.keys: private keys are private, whole, and never overwritten."""

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from kensho.base.errors import ConfigError, StorageError
from kensho.delivery.keys import ROLES, keygen, load_public_key, load_signer


def test_keys_are_private_and_their_ids_are_those_of_the_metadata(tmp_path: Path) -> None:
    ids = keygen(tmp_path / "keys")
    assert set(ids) == set(ROLES)
    assert len(set(ids.values())) == 4
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    for role in ROLES:
        assert stat.S_IMODE((tmp_path / "keys" / f"{role}.pem").stat().st_mode) == 0o600
        assert load_public_key(tmp_path / "keys", role).keyid == ids[role]
        assert load_signer(tmp_path / "keys", role).public_key.keyid == ids[role]


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    keygen(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError) as caught:
        keygen(tmp_path)
    assert caught.value.advice
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_killed_keygen_can_be_run_again(tmp_path: Path) -> None:
    partial = tmp_path / ".keys.partial"
    partial.mkdir()
    (partial / "root.pem").write_bytes(b"half a k")
    keygen(tmp_path / "keys")
    assert load_signer(tmp_path / "keys", "root")
    assert not partial.exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((ConfigError, StorageError)):
        keygen(tmp_path / "file")
    with pytest.raises((ConfigError, StorageError)):
        keygen(tmp_path / "file" / "keys")


def test_a_private_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    keygen(tmp_path)
    (tmp_path / "targets.pem").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_signer(tmp_path, "targets")


def test_what_is_not_an_ed25519_key_is_refused(tmp_path: Path) -> None:
    keygen(tmp_path)
    rsa = generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for data in (b"", b"\xff" * 100, (tmp_path / "root.pub").read_bytes(), rsa):
        (tmp_path / "root.pem").write_bytes(data)
        with pytest.raises(ConfigError, match="not an Ed25519 key"):
            load_signer(tmp_path, "root")
        if b"PUBLIC" not in data:
            (tmp_path / "root.pub").write_bytes(data)
            with pytest.raises(ConfigError, match="not an Ed25519 key"):
                load_public_key(tmp_path, "root")
            (tmp_path / "root.pub").write_bytes((tmp_path / "targets.pub").read_bytes())
    (tmp_path / "root.pem").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_signer(tmp_path, "root")
