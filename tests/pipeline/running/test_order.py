"""Which batch is next, and where it goes: the longest way to the end first, and GPUs wait for nothing without one."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.running.batches import Batch, batches
from pipeline.running.inline import InlineRunner
from pipeline.running.nodes import Node
from pipeline.running.order import Graph, Ready, cpus_per_gpu, critical_paths
from pipeline.running.outcome import RunContext
from pipeline.running.room import Room
from pipeline.steps.step import Resources, Step
from pipeline.store.store import Address
from tests.pipeline.fakes import note, serving

HOST = Node(16, 4, 128, "host", "h")
SMALL = Node(8, 2, 64, "small", "s")
CORES = Node(8, 0, 64, "cores", "c")
ENGINE = Resources(num_cpus=4, num_gpus=1)
PAIR = Resources(num_cpus=4, num_gpus=2)
HALF = Resources(num_cpus=2, num_gpus=0.5)
CORE = Resources()
SERVER = Resources(num_cpus=4, num_gpus=1, is_alone=True)


def long(seconds: float, name: str, *upstream: Step, resources: Resources = ENGINE) -> Step:
    return note(name, *upstream, seconds=seconds, resources=resources)


def seconds(batch: Batch) -> float:
    return sum(float(step.config.seconds) for step in batch.steps)


def order(steps: list[Step]) -> list[str]:
    """Labels as they become ready and are taken, one at a time."""
    found = batches(steps)
    graph = Graph.of(found)
    ready = Ready(found, critical_paths(found, graph, seconds))
    num_before, taken = list(graph.num_before), list[str]()
    for index, number in enumerate(num_before):
        if not number:
            ready.add(index)
    for index in ready.drained():
        taken.append(found[index].steps[0].label)
        for behind in graph.behind[index]:
            num_before[behind] -= 1
            if not num_before[behind]:
                ready.add(behind)
    return taken


def test_the_longest_way_to_the_end_is_first() -> None:
    fetch = long(1, "fetch", resources=CORE)
    small, large = long(5, "small", fetch), long(2, "large", fetch)
    behind_large = long(9, "behind large", large)
    assert order([fetch, small, large, behind_large]) == ["fetch", "large", "behind large", "small"]


def test_of_equals_the_plans_first_is_first() -> None:
    assert order([long(1, name) for name in "abc"]) == ["a", "b", "c"]


def test_repetitions_alternate_however_long_each_takes() -> None:
    """a, b, c and again, although three of the longest would come first by what is behind them."""
    steps = [
        replace(long(seconds, f"{name}{turn}", resources=SERVER), turn=turn)
        for seconds, name in ((9, "a"), (5, "b"), (7, "c"))
        for turn in range(3)
    ]
    first = long(1, "what has no turn", resources=SERVER)
    assert order([*steps, first]) == ["a0", "c0", "b0", "what has no turn", "a1", "c1", "b1", "a2", "c2", "b2"]


def test_repetitions_alternate_in_one_process_as_well(tmp_path: Path) -> None:
    """What is made late of a first turn comes before what could already run of a second one."""
    made = note("made of", note("fetched"))
    names = {"a": note("fetched"), "b": made}
    steps = [
        replace(note(f"{name}{turn}", checkpoint, scratch=str(tmp_path)), turn=turn)
        for name, checkpoint in names.items()
        for turn in range(2)
    ]
    context = RunContext(Address(tmp_path / "store"), "run", max_attempts=1)
    InlineRunner().run(batches([note("fetched"), made, *steps]), context, lambda done: None)
    assert (tmp_path / "calls").read_text().split() == ["a0", "b0", "a1", "b1"]


def test_a_batch_takes_those_of_its_family_that_are_ready_up_to_a_number() -> None:
    found = batches(
        [
            serving(name, note(f"of {name}"), family=name[0], resources=ENGINE, task=name)
            for name in ("x1", "y1", "x2", "x3")
        ]
    )
    found = [batch for batch in found if batch.family] + [batches([long(9, "alone")])[0]]
    ready = Ready(found, [4, 3, 2, 1, 0])
    for index in range(5):
        ready.add(index)
    assert ready.pop(ENGINE) == 0
    assert ready.pop_family(0, 1) == [2]
    assert ready.pop_family(4, 9) == [], "what has no family takes nobody along"
    assert ready.pop_family(0, 9) == [3]
    assert list(ready.drained()) == [1, 4]


def test_how_many_engines_run_at_once() -> None:
    assert Room([HOST, SMALL, CORES], grows=False).num_places(ENGINE) == 6
    assert Room([HOST], grows=False).num_places(HALF) == 8
    assert Room([HOST], grows=False).num_places(Resources(num_cpus=9, num_gpus=1)) == 1
    assert Room([SMALL, HOST], grows=False).num_places(Resources(4, 3, num_nodes=3)) == 2
    assert Room([CORES], grows=False).num_places(ENGINE) == 1, "where none can run, one waits"
    assert Room([HOST], grows=True).num_places(ENGINE) > 10**9, "a node comes for each"


def test_what_does_not_fit_keeps_nothing_else_from_a_free_gpu() -> None:
    found = batches([long(9, "pair", resources=PAIR), long(1, "short"), long(2, "longer")])
    ready = Ready(found, [seconds(batch) for batch in found])
    for index in range(3):
        ready.add(index)
    assert ready.shapes() == [PAIR, ENGINE]
    assert found[ready.pop(ENGINE)].steps[0].label == "longer"


def test_gpus_are_filled_and_not_oversubscribed() -> None:
    room = Room([HOST], grows=False)
    first = room.place(PAIR)
    assert first is not None
    assert first.node_id == "h"
    places = [room.place(each) for each in (ENGINE, HALF, HALF)]
    assert all(places)
    assert room.place(HALF) is None
    room.give_back(first)
    assert room.place(PAIR)


def test_small_engines_are_packed_so_that_a_pair_finds_its_gpus_together() -> None:
    room = Room([Node(8, 2, 64, node_id="a"), Node(8, 2, 64, node_id="b")], grows=False)
    assert [place.node_id for place in (room.place(ENGINE), room.place(ENGINE)) if place] == ["a", "a"]
    pair = room.place(PAIR)
    assert pair is not None
    assert pair.node_id == "b"


def test_cores_alone_are_taken_where_no_gpu_needs_them() -> None:
    room = Room([HOST, CORES], grows=False)
    room.cpus_per_gpu = 4
    taken = [room.place(CORE) for _ in range(20)]
    found = [place.node_id for place in taken if place]
    assert found == ["c"] * 16 + ["h"], "eight at work and eight at hand, and one is the guest of the GPUs' node"
    engines = [room.place(ENGINE) for _ in range(4)]
    assert all(engines), "no comparison has taken a GPU's core"


def test_a_guest_takes_no_core_and_another_waits() -> None:
    room = Room([HOST], grows=False)
    room.cpus_per_gpu = 4
    guest = room.place(CORE)
    assert guest is not None
    assert guest.asked.num_cpus == 0
    assert room.place(CORE) is None
    room.give_back(guest)
    assert room.place(CORE)


def test_cores_that_no_gpu_will_need_are_free_for_all() -> None:
    room = Room([HOST], grows=False)
    assert len([place for _ in range(20) if (place := room.place(CORE))]) == 17


def test_what_is_kept_for_a_gpu_is_the_most_that_any_batch_to_come_wants() -> None:
    assert cpus_per_gpu({ENGINE: 3, PAIR: 1, CORE: 9}) == 4
    assert cpus_per_gpu({ENGINE: 0, PAIR: 1}) == 2
    assert cpus_per_gpu({CORE: 9}) == 0


def test_what_is_alone_waits_for_an_empty_node_and_what_has_no_gpu_lets_it_have_one() -> None:
    room = Room([SMALL], grows=False)
    core = room.place(CORE)
    assert core is not None
    assert room.place(SERVER) is None
    room.close_for(SERVER)
    assert room.place(CORE) is None
    assert room.place(ENGINE), "but a GPU is not kept idle for it"
    other = Room([SMALL], grows=False)
    alone = other.place(SERVER)
    assert alone is not None
    assert (alone.asked.num_cpus, alone.asked.num_gpus) == (8, 2)
    assert other.place(CORE) is None
    other.give_back(alone)
    assert other.place(CORE)


def test_what_takes_few_cores_does_not_keep_what_takes_many_waiting_for_ever() -> None:
    room, pair_of_cores = Room([Node(2, 0, 8, node_id="n")], grows=False), Resources(num_cpus=2)
    at_work = [place for _ in range(9) if (place := room.place(CORE))]
    assert len(at_work) == 4
    for place in at_work[:3]:
        room.give_back(place)
    assert room.place(pair_of_cores) is None
    room.close_for(pair_of_cores)
    assert room.place(CORE) is None, "it is less urgent"
    room.give_back(at_work[3])
    room.reopen()
    assert room.place(pair_of_cores)


def test_who_waits_for_gpus_keeps_no_cores_free() -> None:
    room = Room([SMALL], grows=False)
    assert room.place(ENGINE)
    assert room.place(PAIR) is None
    room.close_for(PAIR)
    assert room.place(CORE)


@pytest.mark.parametrize("grows", [False, True])
def test_on_a_cluster_that_grows_what_fits_nowhere_is_asked_for(grows: bool) -> None:
    room = Room([SMALL], grows)
    places = [room.place(ENGINE) for _ in range(3)]
    assert [place and place.node_id for place in places] == ["s", "s", None]
    assert (places[2] is not None) is grows


def test_an_engine_of_several_nodes_takes_a_gpu_of_each() -> None:
    spread = Resources(num_cpus=4, num_gpus=4, num_nodes=2)
    room = Room([SMALL, Node(8, 2, 64, node_id="t")], grows=False)
    place = room.place(spread)
    assert place is not None
    assert place.node_id is None
    assert sorted(node_id for node_id, _ in place.parts) == ["s", "s", "t", "t"]
    assert room.place(ENGINE) is None
    room.give_back(place)
    assert room.place(PAIR)


def test_a_node_that_is_gone_has_no_room_and_one_that_came_has() -> None:
    room = Room([SMALL], grows=False)
    place = room.place(PAIR)
    assert place is not None
    room.update([CORES])
    assert room.place(ENGINE) is None
    room.give_back(place)
    room.update([CORES, SMALL])
    assert room.place(PAIR)
