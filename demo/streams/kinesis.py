"""The payment provider's Kinesis: moto's, of which only this service is started."""

import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from demo.listening import listen
from demo.streams.messages import Message, burst

PORT = 8805
STREAM, SHARDS = "payments", 2
REGION = "us-east-1"
KEYS = {"aws_access_key_id": "demo", "aws_secret_access_key": "demo"}
_ACCOUNT = "123456789012"
_MADE_AT = datetime(2017, 12, 25)
"""Always the same: it is the same stream, with the same messages at the same places."""


@contextmanager
def serve(run: Path, any_port: bool) -> Iterator[str]:
    """Run the server in a thread that ends with the process; give its address."""
    from moto.kinesis.models import kinesis_backends
    from moto.moto_server.werkzeug_app import create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, *_: Any) -> None:
            """Say nothing of each request."""

    stream = kinesis_backends[_ACCOUNT][REGION].create_stream(STREAM, SHARDS)
    stream.creation_datetime = _MADE_AT
    for _, key, value in burst(run, STREAM):
        shard = stream.get_shard_for_key(key, "")
        assert shard is not None
        shard.put_record(key, b64encode(value.encode()).decode(), "")
    app = create_backend_app("kinesis")
    with listen(PORT, any_port) as listener:
        host, port = listener.getsockname()
        descriptor = listener.fileno()
        server = make_server(host, port, app, threaded=True, request_handler=Quiet, fd=descriptor)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{host}:{port}"


class Sender:
    """Sends to a server by its address."""

    def __init__(self, address: str) -> None:
        import boto3  # type: ignore[import-untyped]

        self.client = boto3.client("kinesis", REGION, endpoint_url=address, **KEYS)

    def send(self, messages: list[Message]) -> None:
        for start in range(0, len(messages), 500):
            records = [
                {"PartitionKey": key, "Data": value.encode()}
                for _, key, value in messages[start : start + 500]
            ]
            self.client.put_records(StreamName=STREAM, Records=records)
