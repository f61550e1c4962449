"""A private SFTP server for tests, with a key of its own that clients must know."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import asyncssh

USER = "drop"
PASSWORD = "p@ss/word:sftp"  # noqa: S105
ESCAPED = "p%40ss%2Fword%3Asftp"


@dataclass(frozen=True)
class Sftp:
    """Where the server is, and the line by which a client knows it."""

    port: int
    known_host: str

    @property
    def address(self) -> str:
        return f"sftp://{USER}:{ESCAPED}@127.0.0.1:{self.port}"


class _Users(asyncssh.SSHServer):
    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == (USER, PASSWORD)


@contextmanager
def serving_sftp(folder: Path) -> Iterator[Sftp]:
    """Serves a folder as `/`."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> asyncssh.SSHAcceptor:
        return await asyncssh.create_server(
            _Users,
            "127.0.0.1",
            0,
            server_host_keys=[key],
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=str(folder).encode()),
        )

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    port = server.sockets[0].getsockname()[1]
    public = key.export_public_key().decode().strip()
    try:
        yield Sftp(port, f"[127.0.0.1]:{port} {public}\n")
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
