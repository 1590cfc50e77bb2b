"""What a gate writes: ``gate.json``, every check with what was found and expected."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stages.documents import read_json, write_json

CHECKS = "gate.json"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a gate.  ``passed`` is None for a check that could not be made."""

    name: str
    passed: bool | None
    value: float | None = None
    expected: float | None = None
    detail: str = ""


def write_checks(out: Path, checks: Sequence[Check]) -> None:
    """In their order."""
    write_json(out / CHECKS, [asdict(check) for check in checks], indent=2)


def read_checks(directory: Path) -> list[Check]:
    """In their order."""
    return read_json(directory / CHECKS, list[Check])
