"""A Ray worker that computes on GPUs: each batch in a process of its own, as without Ray.

The worker outlives its batches, so that the process for the next one can be started ahead on the same GPUs.  Ending
with each, as Ray lets workers that hold GPUs, it would have them wait some 20 s for the imports of every batch.
"""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.running.apart import GpuLane
from pipeline.running.batches import Batch
from pipeline.running.nodes import this_node
from pipeline.running.outcome import Outcome, RunContext
from pipeline.steps.step import Step

POLL_S = 1.0

_lanes: dict[str, GpuLane] = {}  # of this process, by run


def run_on_gpus(
    batch: Batch, context: RunContext, upstream: Sequence[Outcome], expected: Step | None
) -> list[Outcome] | str:
    """``run_batch`` in a child process; a line that says why where nobody knows how it ended.

    ``expected``: a step of the batch that will probably follow here.
    """
    lane = _lanes.setdefault(context.run_id, GpuLane(replace(context, node_id=this_node())))
    lane.begin(batch, upstream, expected)
    done = None
    while done is None:
        done = lane.outcomes(POLL_S)
    return done
