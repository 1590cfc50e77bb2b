"""What earlier comparisons in a store say of how many documents a format changes: for plans, which otherwise guess."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.planning.plan import Plan
from pipeline.planning.power import Change, Measured
from pipeline.steps.roles import under
from pipeline.store.store import Store
from stages.inference import critical_value

FEWEST_PAIRS = 200  # of fewer documents the share that flips is known worse than by a guess


def measured_changes(plan: Plan, store: Store) -> Measured:
    """By trial and task, of comparisons under the same names and of the same leaves, whatever their documents were;
    of several the one of most documents.
    """
    places = dict(_places(plan))
    found: dict[tuple[str, str], tuple[int, Change]] = {}
    for manifest in store.manifests("compare", places):
        place = places.get(manifest["label"])
        if place is None or not _is_of_same_task(plan, place, manifest["payload"][3]):
            continue
        numbers = manifest["metrics"]
        num_pairs, change = numbers.get("num_pairs") or 0, _change(numbers, manifest["payload"][3])
        if change is not None and num_pairs >= max(FEWEST_PAIRS, found.get(place, (0, change))[0]):
            found[place] = num_pairs, change
    return {place: change for place, (_, change) in found.items()}


def _places(plan: Plan) -> Iterator[tuple[str, tuple[str, str]]]:
    for name, planned in plan.trials.items():
        for slot, ref in under(planned.steps, "compare").items():
            yield plan.steps[ref].label, (name, slot)


def _is_of_same_task(plan: Plan, place: tuple[str, str], asked: Mapping[str, Any]) -> bool:
    now = plan.steps[plan.trials[place[0]].steps[f"compare/{place[1]}"]].config
    return [asked.get("leaves"), asked.get("metric")] == [now.leaves, now.metric]


def _change(numbers: Mapping[str, Any], asked: Mapping[str, Any]) -> Change | None:
    """Of what is right or wrong by the flips, with half a document that nobody has seen; else by the interval."""
    num_pairs, num_changed = numbers.get("num_pairs"), numbers.get("num_changed")
    if not num_pairs or num_changed is None:
        return None
    if numbers.get("num_base_only_right") is not None:
        flips = (num_changed + 0.5) / (num_pairs + 1)
        return Change(flips * (numbers.get("design_effect") or 1.0), flips, is_measured=True)
    low, high = numbers.get("difference_low"), numbers.get("difference_high")
    if low is None or high is None:
        return None
    half = (high - low) / 2 / critical_value(asked.get("confidence", 0.95))
    return Change(num_pairs * half**2, None, is_measured=True)
