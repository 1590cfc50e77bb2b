"""A store in object storage (S3 and what fsspec knows besides), read through a directory of this machine.

    manifests/<stage>/<name>.json                     the marker, put last and only if there is none
    artifacts/<stage>/<name>/<upload>/<file>          the files of the upload that the marker names
    artifacts/<stage>/<name>/<upload>/manifest.json   until there is a marker: whose upload this is
    damaged/<stage>/<name>-<unique>.json              markers that were moved aside; hidden/...: for a moment
    ledger/..., sweeps/..., logs/...

Objects cannot be renamed or appended to: every upload has a folder of its own, and of several publishers of one
artifact the first marker wins.  Credentials and endpoint come from the environment, as with any S3 client.
"""

import contextlib
import json
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.store.bucket_listing import NUM_STREAMS, BucketListing, drop_copy, marker_of
from pipeline.store.directory import check_directory
from pipeline.store.drafts import draft_directory
from pipeline.store.manifest import MANIFEST, damage, digest_of, read_manifest, write_manifest
from stages.errors import DataError, one_line


class BucketStorage(BucketListing):
    """Artifacts and records below a URL; ``local`` holds drafts, logs, and a copy of every artifact that was read."""

    def fetch(self, stage: str, name: str) -> Path:
        """The local copy, downloaded and its digests checked if it is not there yet."""
        manifest, local = self.manifest(stage, name), self.local / stage / name
        if not manifest:
            raise FileNotFoundError(f"{stage}/{name} is not in the store {self.url}")
        if read_manifest(local).get("upload") == manifest["upload"]:
            return local
        with draft_directory(self.local, stage, name[-12:]) as partial:
            self._download(stage, name, manifest, partial)
            if what := damage(partial, manifest["files"]):
                raise DataError(f"{stage}/{name} of {self.url} arrived damaged: {what}")
            self._keep(partial, local, manifest)
        return local

    def publish(self, draft: Path, stage: str, name: str, manifest: Mapping[str, Any]) -> None:
        upload = uuid.uuid4().hex[:12]
        place, files = f"artifacts/{stage}/{name}/{upload}", list(manifest["files"])
        marked = {**manifest, "upload": upload}
        text = json.dumps(marked, indent=1, ensure_ascii=False)
        self.write(f"{place}/{MANIFEST}", text)
        if files:
            self._fs.put([str(draft / file) for file in files], [f"{self._root}/{place}/{file}" for file in files])
        self.create(marker_of(stage, name), text)
        # Asked again, because a request that was sent twice may have met its own marker.
        if self.manifest(stage, name).get("upload") == upload:
            self.delete(f"{place}/{MANIFEST}")
            self._keep(draft, self.local / stage / name, marked)
        else:
            self._remove_files(place, marked)
        self._listed.pop(stage, None)

    def damage(self, stage: str, name: str) -> str | None:
        """A copy that went bad on this machine is dropped and fetched again: only the bucket's own damage counts."""
        for _ in range(2):
            try:
                local = self.fetch(stage, name)
            except DataError as error:
                return str(error)
            what = damage(local, read_manifest(local).get("files", {}))
            if what is None:
                return None
            drop_copy(local)
        return what

    def audit(self, stage: str, name: str) -> str | None:
        if not (manifest := self.manifest(stage, name)):
            return "its manifest is missing"
        folder = f"{self._root}/artifacts/{stage}/{name}/{manifest['upload']}"
        with ThreadPoolExecutor(NUM_STREAMS) as streams:
            digests = streams.map(lambda file: self._digest(f"{folder}/{file}"), manifest["files"])
            for (file, described), digest in zip(manifest["files"].items(), digests, strict=True):
                if digest != described["sha256"]:
                    return f"{file} is missing" if digest is None else f"{file} was changed"
        return None

    def set_aside(self, stage: str, name: str) -> None:
        self._move_marker(stage, name, "damaged")

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

    def _download(self, stage: str, name: str, manifest: Mapping[str, Any], target: Path) -> None:
        folder, files = f"{self._root}/artifacts/{stage}/{name}/{manifest['upload']}", list(manifest["files"])
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
                drop_copy(local)
        raise OSError(f"{local} cannot be replaced")

    def _digest(self, path: str) -> str | None:
        try:
            with self._fs.open(path, "rb") as stream:
                return digest_of(stream)
        except FileNotFoundError:
            return None
