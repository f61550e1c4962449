"""Ports of our own on 127.0.0.1."""

import socket


def listen(port: int, any_port: bool) -> socket.socket:
    """Take a port, or any free one; a taken port ends the program."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", 0 if any_port else port))
        listener.listen()  # at once: two sockets may bind to one port before either listens
    except OSError as error:
        listener.close()
        raise SystemExit(f"demo: port {port}: {error.strerror}; is the demo running?") from None
    return listener
