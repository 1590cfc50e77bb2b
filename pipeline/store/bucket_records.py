"""Records of a store in object storage: each an object, or for lines a folder of them."""

import contextlib
import re
import time
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from pipeline.errors import UserError
from pipeline.store.manifest import parsed
from pipeline.store.storage import unique
from stages.errors import one_line, redacted

_UPLOAD = re.compile(r"[0-9a-f]{12}")
_BUCKETS = ("s3", "s3a", "gs", "gcs")


class BucketRecords:
    """Objects below a URL, by names that begin there."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        _check_url(url)
        try:
            self._fs, path = url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UserError(f"store.root={url}: {one_line(error)}; for S3: pip install s3fs") from None
        self.url = redacted(url.rstrip("/"))
        self._root = path.rstrip("/")

    def append(self, record: str, line: str) -> None:
        self.write(f"{record}/{time.time_ns():020d}-{unique()}", line)

    def lines(self, record: str) -> Sequence[str]:
        found = self._find(record)
        texts = sorted(self._fs.cat(list(found)).items()) if found else []
        return [text.decode(errors="replace") for _, text in texts]

    def create(self, record: str, text: str) -> None:
        with contextlib.suppress(FileExistsError):
            self._fs.pipe_file(f"{self._root}/{record}", text.encode(), mode="create")

    def write(self, record: str, text: str) -> None:
        self._fs.pipe_file(f"{self._root}/{record}", text.encode())

    def read(self, record: str) -> str | None:
        try:
            return bytes(self._fs.cat_file(f"{self._root}/{record}")).decode()
        except FileNotFoundError:
            return None

    def delete(self, record: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{record}")

    def records(self, folder: str) -> Sequence[str]:
        return sorted(PurePosixPath(found["name"]).name for found in self._ls(folder))

    def _ls(self, folder: str) -> list[dict[str, Any]]:
        try:
            return list(self._fs.ls(f"{self._root}/{folder}", detail=True))
        except FileNotFoundError:
            return []

    def _find(self, folder: str) -> dict[str, dict[str, Any]]:
        return dict(self._fs.find(f"{self._root}/{folder}", detail=True))

    def _manifest_at(self, record: str) -> dict[str, Any]:
        try:
            found = parsed(self._fs.cat_file(f"{self._root}/{record}"))
        except FileNotFoundError:
            return {}
        return found if _UPLOAD.fullmatch(str(found.get("upload"))) else {}

    def _record_at(self, path: str) -> str:
        """A path of the file system as the name of a record."""
        return PurePosixPath(path).relative_to(self._root).as_posix()


def _check_url(url: str) -> None:
    """Raise UserError for a URL that names no bucket, or somebody who logs in, which no object storage reads there."""
    scheme, _, rest = url.partition("://")
    bucket = rest.partition("/")[0]
    if not rest.strip("/"):
        raise UserError(f"store.root={url} names no bucket: give it as {scheme}://BUCKET/PREFIX")
    if "@" in bucket and scheme in _BUCKETS:
        raise UserError(
            f"store.root={scheme}://***@{bucket.rpartition('@')[2]} holds credentials, which are not read there: take "
            "them out, and set them in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
