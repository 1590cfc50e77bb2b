"""What lies in a bucket, by markers, and how it leaves: out of sight first, then for good."""

import contextlib
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.steps.stages import STAGES
from pipeline.store.bucket_records import BucketRecords
from pipeline.store.directory import SET_ASIDE
from pipeline.store.manifest import MANIFEST, num_bytes, proves
from pipeline.store.ownership import remove_listed
from pipeline.store.storage import Stored

MIN_PATIENCE_S = 5.0  # a listing is one request a thousand artifacts
NUM_STREAMS = 16
# An upload that is under way has newer objects than this; so has a marker that somebody is about to bring back.
ABANDONED_AFTER_S = 7 * 24 * 3600
_OUT_OF_SIGHT = re.compile(r"(?P<name>.+)-[0-9a-f]{8}")


class BucketListing(BucketRecords):
    """Artifacts below a URL; ``local`` holds copies of those that were read."""

    def __init__(self, url: str, cache: Path, patience_s: float) -> None:
        super().__init__(url)
        self.local = cache
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
        return self._manifest_at(marker_of(stage, name))

    def everything(self) -> Iterator[Stored]:
        with ThreadPoolExecutor(NUM_STREAMS) as streams:
            for stage in sorted(STAGES):
                self._listed.pop(stage, None)
                names = sorted(self._names(stage))
                yield from filter(None, streams.map(self._artifact, [stage] * len(names), names))
        yield from filter(None, map(self._out_of_sight, sorted(self._find("damaged"))))
        for marker, found in sorted(self._find("hidden").items()):
            if _age_s(found) > ABANDONED_AFTER_S and (stored := self._out_of_sight(marker)) is not None:
                yield stored
        yield from self._abandoned_uploads()

    def unproven(self) -> Sequence[str]:
        aside = [path for path in sorted(self._find("damaged")) if not self._manifest_at(self._record_at(path))]
        return [f"{self.url}/{self._record_at(path)}" for path in aside]

    def hide(self, stored: Stored) -> Stored | None:
        if stored.name is None:
            return stored
        marker = self._move_marker(stored.stage, stored.name, "hidden")
        return None if marker is None else stored._replace(name=None, location=marker)

    def restore(self, hidden: Stored) -> None:
        hidden_marker = self._record_at(hidden.location)
        if (text := self.read(hidden_marker)) is not None:
            self.create(marker_of(hidden.stage, _name_of(hidden_marker)), text)
            self.remove(hidden)  # the marker alone, unless the artifact was made again meanwhile
        self._listed.pop(hidden.stage, None)

    def remove(self, hidden: Stored) -> None:
        record = self._record_at(hidden.location)
        if manifest := self._manifest_at(record):
            name = PurePosixPath(record).parts[2] if record.startswith("artifacts/") else _name_of(record)
            if self.manifest(hidden.stage, name).get("upload") != manifest["upload"]:
                self._remove_files(f"artifacts/{hidden.stage}/{name}/{manifest['upload']}", manifest)
        self.delete(record)

    def _artifact(self, stage: str, name: str) -> Stored | None:
        manifest = self.manifest(stage, name)
        if not proves(manifest, stage, name):
            return None
        place = f"{self._root}/artifacts/{stage}/{name}/{manifest['upload']}"
        return Stored(stage, name, place, num_bytes(manifest))

    def _out_of_sight(self, path: str) -> Stored | None:
        """What a marker that was moved aside stands for; None while the artifact is there as well."""
        record = self._record_at(path)
        stage, manifest = PurePosixPath(record).parent.name, self._manifest_at(record)
        is_ours = stage in STAGES and record.count("/") == 2 and proves(manifest, stage, _name_of(record))
        if not is_ours or self.manifest(stage, _name_of(record)).get("upload") == manifest["upload"]:
            return None
        return Stored(stage, None, path, num_bytes(manifest))

    def _abandoned_uploads(self) -> Iterator[Stored]:
        """Uploads that say whose they are, have no marker, and of which nothing is new."""
        ages_s: dict[tuple[str, ...], list[float]] = {}
        for path, found in self._find("artifacts").items():
            ages_s.setdefault(PurePosixPath(self._record_at(path)).parts[1:4], []).append(_age_s(found))
        old = [upload for upload, ages in ages_s.items() if len(upload) == 3 and min(ages) > ABANDONED_AFTER_S]
        for stage, name, upload in sorted(old):
            place = f"artifacts/{stage}/{name}/{upload}/{MANIFEST}"
            manifest = self._manifest_at(place)
            is_ours = stage in STAGES and manifest.get("upload") == upload and proves(manifest, stage, name)
            if is_ours and self.manifest(stage, name).get("upload") != upload:
                yield Stored(stage, None, f"{self._root}/{place}", num_bytes(manifest))

    def _move_marker(self, stage: str, name: str, folder: str) -> str | None:
        """Where an artifact's marker went; None when it was gone."""
        target = f"{self._root}/{folder}/{stage}/{name}-{uuid.uuid4().hex[:8]}.json"
        self._listed.pop(stage, None)
        try:
            self._fs.mv(f"{self._root}/{marker_of(stage, name)}", target)
        except FileNotFoundError:  # another worker was first
            return None
        drop_copy(self.local / stage / name)
        return target

    def _remove_files(self, place: str, manifest: Mapping[str, Any]) -> None:
        with ThreadPoolExecutor(NUM_STREAMS) as streams:
            list(streams.map(self.delete, [f"{place}/{file}" for file in manifest["files"]]))
        self.delete(f"{place}/{MANIFEST}")

    def _names(self, stage: str) -> list[str]:
        self.listing(stage)
        return list(self._listed[stage][2])


def marker_of(stage: str, name: str) -> str:
    """The record whose presence makes an artifact."""
    return f"manifests/{stage}/{name}.json"


def _name_of(record: str) -> str:
    """Of what artifact a marker was that has been moved aside; empty where it is none."""
    found = _OUT_OF_SIGHT.fullmatch(PurePosixPath(record).stem)
    return found["name"] if found else ""


def drop_copy(copy: Path) -> None:
    """Remove a copy on this machine: what its manifest lists; anything else is out of the way under another name."""
    aside = copy.with_name(f"{SET_ASIDE}{copy.name}-{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(FileNotFoundError):
        remove_listed(copy.rename(aside))


def _stamp(found: Mapping[str, Any]) -> str:
    """An object's version, by whatever name the file system gives it."""
    return str(found.get("ETag") or found.get("etag") or found.get("LastModified") or found.get("mtime"))


def _age_s(found: Mapping[str, Any]) -> float:
    changed = found.get("LastModified")
    return time.time() - changed.timestamp() if changed is not None else 0.0
