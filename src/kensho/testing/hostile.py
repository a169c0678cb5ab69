"""A web server that misbehaves on purpose, for the tests of the HTTP source."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Answer = Callable[[bytes, socket.socket], None]
"""Given the request's head and the connection: writes whatever it likes."""


@contextmanager
def hostile_server(answer: Answer, *, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The address of a server that answers every request on every connection by `answer`, then closes it."""
    listener = socket.create_server(("127.0.0.1", 0))
    open_sockets: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                if tls:
                    connection = tls.wrap_socket(connection, server_side=True)
                head = b""
                while b"\r\n\r\n" not in head:
                    data = connection.recv(65536)
                    if not data:
                        return
                    head += data
                answer(head, connection)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            open_sockets.append(connection)
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in open_sockets:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


def reply(status: str, body: bytes = b"", **headers: str) -> Answer:
    """The same complete answer to everybody. Header names are written with `_` for `-`."""
    fields = {"Content_Length": str(len(body)), "Connection": "close", **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items() if value)
    head = f"HTTP/1.1 {status}\r\n{lines}\r\n".encode()
    return lambda _, connection: connection.sendall(head + body)
