"""Whether two measurements were made alike, and if not, in what they differ."""

import json
from collections.abc import Mapping
from typing import Any

from stages.errors import DataError


def differences(left: Mapping[str, Any], right: Mapping[str, Any], left_name: str, right_name: str) -> str:
    """``num_fewshot is 5 in the trial and 8 in the base``, one clause for each field; empty when all are equal."""
    clauses = []
    for field in sorted(left.keys() | right.keys()):
        values = [json.dumps(side.get(field), sort_keys=True) for side in (left, right)]
        if values[0] != values[1]:
            clauses.append(f"{field} is {values[0]} in {left_name} and {values[1]} in {right_name}")
    return "; ".join(clauses)


def check_one_arithmetic(label: str, found: Mapping[str, Mapping[str, Any] | None]) -> None:
    """A native kernel on one machine and its simulation on another are not one measurement.

    Raises DataError that names what differs; None is of results older than the field.
    """
    known = {name: arithmetic for name, arithmetic in found.items() if arithmetic is not None}
    first = next(iter(known), None)
    for name, arithmetic in known.items():
        differing = differences(known[first or name], arithmetic, str(first), name)
        if differing:
            raise DataError(
                f"{label}: two arithmetics: {differing}; remove the artifacts of one of them from the store and "
                "evaluate them again on machines of the other's kind"
            )
