"""A Kinesis of our own for tests: moto's server in a process of its own, mended where it differs
from Amazon's in what readers see.

Mended: sequence numbers are as long as Amazon's and grow over all shards; a closed shard keeps its
records, takes no more, and ends; an iterator and a reading can be made to fail (`fail`).
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import md5
from itertools import count
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import pytest
from botocore.exceptions import BotoCoreError

KEYS = {"aws_access_key_id": "AKIATHISISOURS", "aws_secret_access_key": "a/secret+of=ours"}
REGION = "eu-central-1"
_FIRST = 49590338271490256608559692538361571095921575989136588898


class Service:
    """A running Kinesis, and what tests do to it."""

    def __init__(self, url: str, process: int) -> None:
        self.url, self.process = url, process
        self.client: Any = boto3.client("kinesis", endpoint_url=url, region_name=REGION, **KEYS)

    def create(self, stream: str, shards: int = 1) -> None:
        self.client.create_stream(StreamName=stream, ShardCount=shards)

    def put(self, stream: str, values: Sequence[bytes]) -> None:
        for begin in range(0, len(values), 500):
            records = [
                {"Data": value, "PartitionKey": str(begin + index)}
                for index, value in enumerate(values[begin : begin + 500])
            ]
            answer = self.client.put_records(StreamName=stream, Records=records)
            assert not answer["FailedRecordCount"]

    def shards(self, stream: str) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = self.client.list_shards(StreamName=stream)["Shards"]
        return found

    def split(self, stream: str, name: str) -> None:
        shard = next(each for each in self.shards(stream) if each["ShardId"] == name)
        ends = shard["HashKeyRange"]
        middle = (int(ends["StartingHashKey"]) + int(ends["EndingHashKey"])) // 2
        self.client.split_shard(
            StreamName=stream, ShardToSplit=name, NewStartingHashKey=str(middle)
        )

    def merge(self, stream: str, one: str, other: str) -> None:
        self.client.merge_shards(StreamName=stream, ShardToMerge=one, AdjacentShardToMerge=other)

    def fail(self, stream: str, error: str, times: int) -> None:
        """Let the next readings of a stream fail."""
        self.client.add_tags_to_stream(StreamName=stream, Tags={"fail": f"{error}:{times}"})


@pytest.fixture(scope="session")
def kinesis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with kinesis_server(tmp_path_factory.mktemp("kinesis") / "log") as service:
        yield service


@contextmanager
def kinesis_server(log: Path, port: int | None = None) -> Iterator[Service]:
    with log.open("a") as said, socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = port or chosen.getsockname()[1]
        chosen.close()
        command = [sys.executable, "-m", "tests.engine.kinesis", str(port)]
        server = subprocess.Popen(command, stdout=said, stderr=said, cwd=Path(__file__).parents[2])
    try:
        service = Service(f"http://127.0.0.1:{port}", server.pid)
        _await(service, server)
        yield service
    finally:
        server.kill()
        server.wait(10)


def _await(service: Service, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(300):
        assert server.poll() is None, "moto's server did not start"
        try:
            service.client.list_streams()
            return
        except BotoCoreError:
            time.sleep(0.1)
    raise AssertionError("moto's server does not answer")


def _mend() -> None:
    """Make moto's Kinesis behave as Amazon's does."""
    from moto.core.exceptions import JsonRESTError
    from moto.core.responses import ActionResult
    from moto.kinesis import models, responses
    from moto.kinesis.utils import decompose_shard_iterator

    numbers = count(_FIRST, 1 << 64)

    def put_record(shard: Any, key: str, data: str, hash_key: str) -> str:
        number = next(numbers)
        shard.records[number] = models.Record(key, data, number, hash_key)
        return str(number)

    def shard_for_key(stream: Any, key: str, hash_key: str) -> Any:
        value = int(hash_key or int(md5(key.encode(), usedforsecurity=False).hexdigest(), 16))
        opened = [shard for shard in stream.shards.values() if shard.is_open]
        return next(s for s in opened if s.starting_hash <= value <= s.ending_hash)

    def keeping(change: Any) -> Any:
        """A split or merge that leaves records where they are."""

        def changed(stream: Any, *names: str) -> None:
            kept = {name: shard.records for name, shard in stream.shards.items()}
            for shard in stream.shards.values():
                shard.records = type(shard.records)()
            try:
                change(stream, *names)
            finally:
                for name, records in kept.items():
                    stream.shards[name].records = records

        return changed

    def get_records(response: Any) -> Any:
        name, shard_id, _ = decompose_shard_iterator(response._get_param("ShardIterator"))
        stream = response.kinesis_backend.describe_stream(None, name)
        error, _, times = stream.tags.get("fail", "").partition(":")
        if times and int(times):
            stream.tags["fail"] = f"{error}:{int(times) - 1}"
            raise JsonRESTError(error, "as the test wants it")
        shard = stream.get_shard(shard_id)
        found: Any = plain(response).result
        after = decompose_shard_iterator(found["NextShardIterator"])[2]
        if not shard.is_open and int(after) >= shard.get_max_sequence_number():
            found["NextShardIterator"] = None
        return ActionResult(found)

    plain = responses.KinesisResponse.get_records
    responses.KinesisResponse.get_records = get_records  # type: ignore
    models.Shard.put_record = put_record  # type: ignore[method-assign,assignment]
    models.Stream.get_shard_for_key = shard_for_key  # type: ignore[method-assign,assignment]
    models.Stream.split_shard = keeping(models.Stream.split_shard)  # type: ignore[method-assign]
    models.Stream.merge_shards = keeping(models.Stream.merge_shards)  # type: ignore[method-assign]


if __name__ == "__main__":
    from moto.server import main

    _mend()
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])
