"""Creates a file on a storage unless there is one: of several processes that try at the same time, one succeeds.

A file system sees to that by `O_EXCL`, fsspec by its mode "create", S3 by `If-None-Match` (with boto3, since pyarrow
has no conditional write). Elsewhere the file is written and, after a while, read back.
"""

from __future__ import annotations

import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

# Seconds between writing and reading back, where no write is conditional. Of those that write within this time the last
# one succeeds.
SETTLE_SECONDS = 2.0
_TAKEN = ("PreconditionFailed", "ConditionalRequestConflict")


def create(filesystem: Any, place: str, path: str, content: bytes) -> bool:
    """Write `content` to `path` if there is no such file; return whether it was written.

    Args:
        filesystem: a filesystem of pyarrow.
        place: the path or URL from which the filesystem was made, which may name the server.
        path: the path of the file inside the filesystem, in a folder that exists.

    Raises:
        OSError: the storage cannot be written.
    """
    kind, written = filesystem.type_name, None
    try:
        if kind == "local":
            with Path(path).open("xb") as file:
                file.write(content)
            return True
        if kind.startswith("py::fsspec"):
            written = _by_fsspec(filesystem.handler.fs, path, content)
        elif kind == "s3" and find_spec("boto3") is not None:
            written = _by_boto(_client(place, filesystem.region), path, content)
    except FileExistsError:
        return False
    return _by_reading_back(filesystem, path, content) if written is None else written


def _by_fsspec(files: Any, path: str, content: bytes) -> bool | None:
    """Write by fsspec; return None if this kind of storage, or this version of its package, has no such mode."""
    try:
        files.pipe_file(path, content, mode="create")
    except (NotImplementedError, TypeError):
        return None
    return True


@cache
def _client(place: str, region: str) -> Any:
    import boto3
    from botocore.config import Config

    given = parse_qs(urlsplit(place).query)
    address = given.get("endpoint_override", [None])[0]
    if address is not None and "://" not in address:
        address = f"{given.get('scheme', ['https'])[0]}://{address}"
    settings = Config(connect_timeout=5, read_timeout=20, retries={"max_attempts": 3})
    return boto3.client("s3", endpoint_url=address, region_name=region or None, config=settings)


def _by_boto(client: Any, path: str, content: bytes) -> bool | None:
    """Write to S3; return None if the server has no conditional writes."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = path.partition("/")
    try:
        client.put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code")
        if code == "NotImplemented":
            return None
        if code in _TAKEN:
            return False
        raise OSError(None, str(error)) from error
    except BotoCoreError as error:
        raise OSError(None, str(error)) from error
    return True


def _by_reading_back(filesystem: Any, path: str, content: bytes) -> bool:
    if filesystem.get_file_info(path).is_file:
        return False
    with filesystem.open_output_stream(path) as stream:
        stream.write(content)
    time.sleep(SETTLE_SECONDS)
    with filesystem.open_input_stream(path) as stream:
        return bool(stream.read() == content)
