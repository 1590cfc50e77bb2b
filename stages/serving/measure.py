"""The three ways a point is measured, each from requests that came back to numbers with their doubts."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from stages.serving import validity
from stages.serving.artifact import ClientCeiling, Rate
from stages.serving.config import ProfileConfig
from stages.serving.load import Request, answered, requests_per_s, sustained_per_s
from stages.serving.steady import WARM_UP_METHOD, has_drifted, num_warm_up, spread

if TYPE_CHECKING:
    from stages.serving.session import Session

MIN_RATE_REQUESTS = 10
WARMED_BEFORE = "the server answered loads of its own before its first point"


@dataclass(frozen=True, slots=True)
class Measurement:
    """Every request of a point, which of them count, and the rate they make."""

    requests: Sequence[Request]
    kept: Sequence[Request]  # answered, after warm-up
    rate: Rate
    repeats: list[float]
    num_warm_up: int
    warm_up_method: str
    ceiling: ClientCeiling
    reasons: list[str] = field(default_factory=list)
    asked_rate: float | None = None
    direct_rate: float | None = None

    @property
    def answered(self) -> list[Request]:
        return answered(self.requests)

    @property
    def spread(self) -> float | None:
        return spread(self.repeats)


def synchronous(config: "ProfileConfig", session: "Session") -> Measurement:
    """One request after the other; then one of the engine without HTTP."""
    load = config.load
    tokens = load.prompt_tokens, load.output_tokens
    # GuideLLM leaves out a request that began before its own clock did: one more is sent.
    requests = session.run({"kind": "synchronous"}, tokens, load.num_sync_requests + 1, True, seed_of(config))
    done = answered(requests)
    cut = num_warm_up(len(done))
    kept = done[cut:]
    latencies = latency_s(kept)
    mean = 1 / float(np.median(latencies))
    ceiling = session.ceilings[True]
    direct = session.direct_rate(tokens, 1, seed_of(config, "direct")) if load.direct else None
    reasons = validity.about_client(mean, load.output_tokens, ceiling)
    reasons += validity.about_http(mean, direct, load.min_direct_share)
    reasons += validity.about_spread(spread(latencies), load.max_spread, "latencies")
    return Measurement(
        requests, kept, Rate(mean=mean), latencies, cut, WARM_UP_METHOD, ceiling, reasons, direct_rate=direct
    )


def throughput(config: "ProfileConfig", session: "Session") -> Measurement:
    """So many at once that the engine is full, until all are answered, ``num_runs`` times; then without HTTP.

    A run begins and ends with an engine that is not full: sustained rates are somewhat higher.
    """

    load = config.load
    tokens = load.prompt_tokens, load.output_tokens
    at_once = {"kind": "throughput", "max_concurrency": load.concurrency}
    runs = [session.run(at_once, tokens, load.concurrency, False, seed_of(config, run)) for run in range(load.num_runs)]
    requests = [request for run in runs for request in run]
    rates = [requests_per_s(run) for run in runs]
    session.reset()
    direct = session.direct_rate(tokens, load.concurrency, seed_of(config, "direct")) if load.direct else None
    mean, ceiling = sum(rates) / len(rates), session.ceilings[False]
    reasons = validity.about_client(mean, load.output_tokens, ceiling)
    reasons += validity.about_http(mean, direct, load.min_direct_share)
    reasons += validity.about_spread(spread(rates), load.max_spread, "throughputs")
    return Measurement(
        requests,
        answered(requests),
        Rate(mean=mean),
        rates,
        0,
        WARMED_BEFORE,
        ceiling,
        reasons,
        direct_rate=direct,
    )


def at_rate(config: "ProfileConfig", session: "Session", asked: float) -> Measurement:
    """Requests that arrive at random (Poisson) at ``asked`` a second.

    Answers that ended after the last arrival met a queue that drained, the first ones one that grew: neither counts.
    """

    load = config.load
    tokens = load.prompt_tokens, load.output_tokens
    number = max(MIN_RATE_REQUESTS, round(asked * load.rate_s))
    requests = session.run({"kind": "poisson", "rate": [asked]}, tokens, number, True, seed_of(config))
    done = answered(requests)
    loaded = under_load(done)
    cut = num_warm_up(len(loaded))
    kept = loaded[cut:]
    ceiling, achieved = session.ceilings[True], sustained_per_s(requests)
    reasons = [] if achieved is None else validity.about_client(achieved, load.output_tokens, ceiling)
    is_unsteady = has_drifted([request["itl_ms"] for request in kept], load.max_spread)
    if achieved is None or len(kept) < MIN_RATE_REQUESTS or is_unsteady:
        reasons.append(
            f"no steady state was found in the {len(loaded)} answers that came while others were asked for: raise "
            f"rate_s={load.rate_s:g}"
        )
    return Measurement(
        requests,
        kept,
        Rate(mean=achieved),
        [],
        cut,
        WARM_UP_METHOD,
        ceiling,
        reasons,
        asked_rate=asked,
    )


def under_load(done: Sequence[Request]) -> list[Request]:
    """The streamed answers that ended before the last request came."""
    last_s = max((request["start_s"] for request in done), default=0.0)
    return [request for request in done if request["end_s"] <= last_s and request["itl_ms"] is not None]


def latency_s(requests: Sequence[Request]) -> list[float]:
    """From asking to the last token."""
    return [request["end_s"] - request["start_s"] for request in requests]


def ttft_ms(requests: Sequence[Request]) -> list[float | None]:
    """Time to the first token; None where the answer was not streamed."""
    return [request["ttft_ms"] for request in requests]


def itl_ms(requests: Sequence[Request]) -> list[float | None]:
    """Each request's mean time between two tokens."""
    return [request["itl_ms"] for request in requests]


def seed_of(config: ProfileConfig, *labels: object) -> int:
    """A seed of its own for every point, start and run, so that no prompt is seen twice."""
    point = [config.workload, config.mode.name, config.rate_share, config.start, *labels]
    return zlib.crc32(repr(point).encode()) % 2**31
