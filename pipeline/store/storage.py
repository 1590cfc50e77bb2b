"""Where a store's bytes lie: a directory that every worker can reach, or object storage.

An artifact is known by its stage and its name, which ends with 12 digits of its fingerprint.  Beside artifacts there
are records: small texts under names like ``ledger/evaluate-0123456789ab``.
"""

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Stored(NamedTuple):
    """Something that a store has proof of having published; ``name`` is that of the artifact it is.

    None for what is out of sight: damaged, hidden, or left of a publication that did not come to its end.
    """

    stage: str
    name: str | None
    location: str
    num_bytes: int


class Records(Protocol):
    """Small texts beside the artifacts, under names like ``ledger/evaluate-0123456789ab``."""

    def append(self, record: str, line: str) -> None:
        """Add a line to a record, whoever else is adding to it."""

    def lines(self, record: str) -> Sequence[str]:
        """A record's lines, oldest first; none when there is no such record."""

    def create(self, record: str, text: str) -> None:
        """Write a record unless it is there."""

    def write(self, record: str, text: str) -> None:
        """Write a record, whole, in place of what is there."""

    def read(self, record: str) -> str | None:
        """A record's text; None when there is no such record."""

    def delete(self, record: str) -> None:
        """Remove a record if it is there."""

    def records(self, folder: str) -> Sequence[str]:
        """Names of the records in a folder, sorted."""


class Storage(Records, Protocol):
    """What a store needs of the place where its bytes lie.  ``local`` is a directory for drafts, logs and memories."""

    @property
    def url(self) -> str: ...

    @property
    def local(self) -> Path: ...

    def refresh(self) -> None:
        """Forget what was listed: others may have published since."""

    def listing(self, stage: str) -> Mapping[str, str]:
        """Names of a stage's artifacts by the 12 digits they end with."""

    def stamp(self, stage: str, name: str) -> str | None:
        """Something that is different whenever the manifest was written anew; None where there is none."""

    def manifest(self, stage: str, name: str) -> dict[str, Any]:
        """The artifact's manifest; empty when it is missing or unreadable."""

    def fetch(self, stage: str, name: str) -> Path:
        """A directory of this machine with the artifact's files."""

    def publish(self, draft: Path, stage: str, name: str, manifest: Mapping[str, Any]) -> None:
        """Make the draft's files the artifact, all at once, unless it is there; the draft may be gone afterwards."""

    def damage(self, stage: str, name: str) -> str | None:
        """What in the files that ``fetch`` gives is not as the manifest says; None if all is well."""

    def audit(self, stage: str, name: str) -> str | None:
        """Like ``damage``, for every byte where it lies."""

    def set_aside(self, stage: str, name: str) -> None:
        """Take a damaged artifact out of sight; nothing happens if it is gone."""

    def everything(self) -> Iterator[Stored]:
        """Whatever can be proved to have been published here: artifacts, and what is left of others."""

    def unproven(self) -> Sequence[str]:
        """Places of what was moved aside and cannot be proved to have been published here."""

    def hide(self, stored: Stored) -> Stored | None:
        """Take it out of sight, from where it can be restored or removed; None if it is gone."""

    def restore(self, hidden: Stored) -> None:
        """Bring back what was hidden, unless it was made again meanwhile."""

    def remove(self, hidden: Stored) -> None:
        """Remove what is out of sight for good, of its files those that were published."""

    def check_writable(self, needed_bytes: int) -> None:
        """Raise UserError when artifacts of ``needed_bytes`` cannot be taken."""

    def log_place(self, log: Path) -> str:
        """Where people find a log that this machine writes below ``local``."""

    def keep_log(self, log: Path) -> None:
        """Bring a log there."""

    def find_log(self, log: Path) -> Path | None:
        """The log on this machine, wherever it was written; None when there is none."""


def unique() -> str:
    """A name that no other process makes."""
    return f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
