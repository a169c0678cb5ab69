import subprocess
import sys

import pytest

PROGRAM = """
import socket, sys
from kensho.base.errors import NetworkNotAllowed
from kensho.base.network_guard import forbid_network
tried = []
forbid_network(tried.append)
a, b = socket.socketpair()
a.send(b"x")
b.close()
unix = socket.socket(socket.AF_UNIX)
try:
    unix.connect("/nowhere")
except FileNotFoundError:
    pass
for attempt in (
    lambda: socket.create_connection(("127.0.0.1", 1)),
    lambda: socket.getaddrinfo("example.org", 80),
    lambda: socket.socket().connect(("127.0.0.1", 1)),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)),
):
    try:
        attempt()
    except NetworkNotAllowed:
        continue
    sys.exit("a connection went through")
print(len(tried))
"""


@pytest.mark.real
def test_every_way_out_is_refused_and_told_while_unix_sockets_work() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "4", "")
