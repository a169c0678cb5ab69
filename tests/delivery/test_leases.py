"""A version in use cannot be claimed for removal; one that is being removed cannot be used."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kensho.delivery.leases import claim_version, lease_version


def test_leases_are_shared_and_keep_claims_away(tmp_path: Path) -> None:
    first, second = lease_version(tmp_path), lease_version(tmp_path)
    assert first and second
    assert claim_version(tmp_path) is None
    first.close()
    first.close()
    assert claim_version(tmp_path) is None
    second.close()
    claim = claim_version(tmp_path)
    assert claim
    claim.close()
    assert lease_version(tmp_path)


def test_who_wants_to_use_what_is_being_removed_waits_and_finds_it_gone(tmp_path: Path) -> None:
    folder = tmp_path / "1.0"
    folder.mkdir()
    claim = claim_version(folder)
    assert claim
    with ThreadPoolExecutor(1) as thread:
        lease = thread.submit(lease_version, folder)
        folder.rmdir()
        claim.close()
        assert lease.result(timeout=10) is None


def test_what_is_gone_or_no_folder_has_no_lease_and_no_users(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path)
    assert lease_version(tmp_path / "gone") is None
    assert lease_version(tmp_path / "file") is None
    assert lease_version(tmp_path / "link") is None
    assert claim_version(tmp_path / "gone")


@pytest.mark.real
def test_the_lease_of_a_killed_process_ends_with_it(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from kensho.delivery.leases import lease_version\n"
        "lease = lease_version(Path(sys.argv[1])); print('held', flush=True); sys.stdin.readline()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout and holder.stdout.readline() == "held\n"
    assert claim_version(tmp_path) is None
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert claim_version(tmp_path)
