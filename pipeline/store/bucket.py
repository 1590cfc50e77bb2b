"""A store in object storage (S3 and what fsspec knows besides), read through a directory of this machine.

    manifests/<stage>/<name>.json                     the marker, put last and only if there is none
    artifacts/<stage>/<name>/<upload>/<file>          the files of the upload that the marker names
    ledger/..., sweeps/..., logs/..., damaged/...

Objects cannot be renamed or appended to: every upload has a folder of its own, and of several publishers of one
artifact the first marker wins.  Credentials and endpoint come from the environment, as with any S3 client.
"""

import contextlib
import json
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import UserError
from pipeline.store.directory import check_directory
from pipeline.store.manifest import damage, digest_of, read_manifest, write_manifest
from pipeline.store.storage import ABANDONED_AFTER_S, Stored, unique
from stages.errors import DataError, one_line, redacted

MIN_PATIENCE_S = 5.0  # a listing is one request a thousand artifacts
NUM_STREAMS = 16


class BucketStorage:
    """Artifacts and records below a URL; ``local`` holds drafts, logs, and a copy of every artifact that was read."""

    def __init__(self, url: str, cache: Path, patience_s: float) -> None:
        from fsspec.core import url_to_fs

        try:
            self._fs, path = url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UserError(f"store.root={url}: {one_line(error)}; for S3: pip install s3fs") from None
        self.url, self.local = redacted(url.rstrip("/")), cache
        self._root = path.rstrip("/")
        self._patience_s = max(patience_s, MIN_PATIENCE_S)
        self._listed: dict[str, tuple[float, dict[str, str], dict[str, str]]] = {}  # made at, names, stamps by name

    def refresh(self) -> None:
        self._listed.clear()

    def listing(self, stage: str) -> dict[str, str]:
        known = self._listed.get(stage)
        if known is None or time.monotonic() - known[0] > self._patience_s:
            stamps = {PurePosixPath(found["name"]).stem: _stamp(found) for found in self._ls(f"manifests/{stage}")}
            names = {name.rpartition("-")[2]: name for name in stamps}
            known = self._listed[stage] = time.monotonic(), names, stamps
        return known[1]

    def stamp(self, stage: str, name: str) -> str | None:
        self.listing(stage)
        return self._listed[stage][2].get(name)

    def manifest(self, stage: str, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads(self.read(_marker(stage, name)) or "{}"))
        except ValueError:
            return {}

    def fetch(self, stage: str, name: str) -> Path:
        """The local copy, downloaded and its digests checked if it is not there yet."""
        manifest, local = self.manifest(stage, name), self.local / stage / name
        if not manifest:
            raise FileNotFoundError(f"{stage}/{name} is not in the store {self.url}")
        if read_manifest(local).get("upload") == manifest["upload"]:
            return local
        partial = local.with_name(f".draft-{name[-12:]}-{unique()}")
        try:
            self._download(stage, name, manifest, partial)
            if what := damage(partial, manifest["files"]):
                raise DataError(f"{stage}/{name} of {self.url} arrived damaged: {what}")
            self._keep(partial, local, manifest)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return local

    def publish(self, draft: Path, stage: str, name: str, manifest: Mapping[str, Any]) -> None:
        upload = uuid.uuid4().hex[:12]
        folder = f"{self._root}/artifacts/{stage}/{name}/{upload}"
        files = list(manifest["files"])
        if files:
            self._fs.put([str(draft / file) for file in files], [f"{folder}/{file}" for file in files])
        marked = {**manifest, "upload": upload}
        self.create(_marker(stage, name), json.dumps(marked, indent=1, ensure_ascii=False))
        # Asked again, because a request that was sent twice may have met its own marker.
        if self.manifest(stage, name).get("upload") == upload:
            self._keep(draft, self.local / stage / name, marked)
        else:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm(folder, recursive=True)
        self._listed.pop(stage, None)

    def damage(self, stage: str, name: str) -> str | None:
        """A copy that went bad on this machine is dropped and fetched again: only the bucket's own damage counts."""
        for _ in range(2):
            try:
                local = self.fetch(stage, name)
            except DataError as error:
                return str(error)
            what = damage(local, read_manifest(local)["files"])
            if what is None:
                return None
            shutil.rmtree(local)
        return what

    def audit(self, stage: str, name: str) -> str | None:
        manifest = self.manifest(stage, name)
        folder = f"{self._root}/artifacts/{stage}/{name}/{manifest['upload']}"
        with ThreadPoolExecutor(NUM_STREAMS) as streams:
            digests = streams.map(lambda file: self._digest(f"{folder}/{file}"), manifest["files"])
            for (file, described), digest in zip(manifest["files"].items(), digests, strict=True):
                if digest != described["sha256"]:
                    return f"{file} is missing" if digest is None else f"{file} was changed"
        return None

    def set_aside(self, stage: str, name: str) -> None:
        marker = f"{self._root}/{_marker(stage, name)}"
        with contextlib.suppress(FileNotFoundError):  # another worker was first
            self._fs.mv(marker, f"{self._root}/damaged/{stage}/{name}-{uuid.uuid4().hex[:8]}.json")
        shutil.rmtree(self.local / stage / name, ignore_errors=True)
        self._listed.pop(stage, None)

    def everything(self) -> Iterator[Stored]:
        uploads: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
        for path, found in self._find("artifacts").items():
            stage, name, upload = PurePosixPath(path).relative_to(f"{self._root}/artifacts").parts[:3]
            uploads.setdefault((stage, name, upload), []).append(found)
        for (stage, name, upload), files in sorted(uploads.items()):
            is_artifact = self.manifest(stage, name).get("upload") == upload
            if is_artifact or all(_age_s(found) > ABANDONED_AFTER_S for found in files):
                location = f"{self._root}/artifacts/{stage}/{name}/{upload}"
                num_bytes = sum(int(found["size"]) for found in files)
                yield Stored(stage, name if is_artifact else None, location, num_bytes)
        for path, found in sorted(self._find("damaged").items()):
            yield Stored(PurePosixPath(path).parent.name, None, path, int(found["size"]))

    def remove(self, stored: Stored) -> None:
        if stored.name is not None:
            self._fs.rm(f"{self._root}/{_marker(stored.stage, stored.name)}")
            shutil.rmtree(self.local / stored.stage / stored.name, ignore_errors=True)
        self._fs.rm(stored.location, recursive=True)
        self._listed.pop(stored.stage, None)

    def check_writable(self, needed_bytes: int) -> None:
        """A bucket has no size that one could ask for; the directory must hold what is made and read here."""
        check_directory(self.local, "store.cache=DIR")
        try:
            probe = f"probe-{uuid.uuid4().hex}"
            self.write(probe, "x")
            self.delete(probe)
        except Exception as error:  # each cloud's client has errors of its own
            raise UserError(
                f"the store {self.url} cannot be written ({one_line(error)}): check the bucket's name, the credentials "
                "and the endpoint in the environment, or choose another with store.root"
            ) from None

    def append(self, record: str, line: str) -> None:
        self.write(f"{record}/{time.time_ns():020d}-{unique()}", line)

    def lines(self, record: str) -> Sequence[str]:
        found = self._find(record)
        return [text.decode() for _, text in sorted(self._fs.cat(list(found)).items())] if found else []

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

    def log_place(self, log: Path) -> str:
        return f"{self.url}/{log.relative_to(self.local).as_posix()}"

    def keep_log(self, log: Path) -> None:
        with contextlib.suppress(Exception):  # a log that stays behind must not fail the step
            self._fs.put_file(str(log), f"{self._root}/{log.relative_to(self.local).as_posix()}")

    def find_log(self, log: Path) -> Path | None:
        if not log.exists():
            with contextlib.suppress(FileNotFoundError):
                self._fs.get_file(f"{self._root}/{log.relative_to(self.local).as_posix()}", str(log))
        return log if log.exists() else None

    def _ls(self, folder: str) -> list[dict[str, Any]]:
        try:
            return list(self._fs.ls(f"{self._root}/{folder}", detail=True))
        except FileNotFoundError:
            return []

    def _find(self, folder: str) -> dict[str, dict[str, Any]]:
        return dict(self._fs.find(f"{self._root}/{folder}", detail=True))

    def _download(self, stage: str, name: str, manifest: Mapping[str, Any], target: Path) -> None:
        folder, files = f"{self._root}/artifacts/{stage}/{name}/{manifest['upload']}", list(manifest["files"])
        target.mkdir(parents=True)
        for file in files:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
        try:
            if files:
                self._fs.get([f"{folder}/{file}" for file in files], [str(target / file) for file in files])
        except FileNotFoundError as error:
            raise DataError(f"{stage}/{name} of {self.url} lacks a file: {one_line(error)}") from None

    def _keep(self, files: Path, local: Path, manifest: Mapping[str, Any]) -> None:
        """Make a directory the local copy, in place of an older upload's."""
        write_manifest(files, manifest)
        local.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            try:
                files.rename(local)
                return
            except OSError:
                if read_manifest(local).get("upload") == manifest["upload"]:
                    return  # another process of this machine was first
                shutil.rmtree(local, ignore_errors=True)
        raise OSError(f"{local} cannot be replaced")

    def _digest(self, path: str) -> str | None:
        try:
            with self._fs.open(path, "rb") as stream:
                return digest_of(stream)
        except FileNotFoundError:
            return None


def _marker(stage: str, name: str) -> str:
    return f"manifests/{stage}/{name}.json"


def _stamp(found: Mapping[str, Any]) -> str:
    """An object's version, by whatever name the file system gives it."""
    return str(found.get("ETag") or found.get("etag") or found.get("LastModified") or found.get("mtime"))


def _age_s(found: Mapping[str, Any]) -> float:
    changed = found.get("LastModified")
    return time.time() - changed.timestamp() if changed is not None else 0.0
