import gzip
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kensho.telemetry.log_file import LogFile


def lines_in(folder: Path) -> list[bytes]:
    out: list[bytes] = []
    for path in folder.glob("kensho*.jsonl*"):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        out += data.splitlines()
    return out


def test_rotation_loses_nothing_while_threads_write(tmp_path: Path) -> None:
    shared = LogFile(tmp_path, max_bytes=4_000, keep=1000)
    logs = [
        shared,
        shared,
        LogFile(tmp_path, max_bytes=4_000, keep=1000),
        LogFile(tmp_path, max_bytes=4_000, keep=1000),
    ]

    def write(number: int) -> None:
        for i in range(200):
            logs[number].write(b"%d-%d-%s\n" % (number, i, b"x" * 50))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(lines_in(tmp_path))) == 800


def test_disk_use_is_bounded_and_old_files_are_compressed(tmp_path: Path) -> None:
    log = LogFile(tmp_path, max_bytes=1_000, keep=3)
    for _ in range(500):
        log.write(b"y" * 99 + b"\n")
    rotated = list(tmp_path.glob("kensho-*.jsonl*"))
    assert len(rotated) <= 4
    assert any(path.suffix == ".gz" for path in rotated)


def test_a_folder_that_cannot_be_written_never_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    log = LogFile(tmp_path / "file" / "logs")
    log.write(b"line\n")
    assert log.dropped == 1


@pytest.mark.real
def test_a_killed_process_loses_no_finished_line(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from kensho.telemetry.log_file import LogFile\n"
        "log = LogFile(Path(sys.argv[1]))\n"
        "for i in range(1000): log.write(b'%d\\n' % i)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(lines_in(tmp_path)) == 1000
    assert os.access(tmp_path / "kensho.jsonl", os.R_OK)
