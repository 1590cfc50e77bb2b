"""Whether a point can be believed: every reason why not, in words."""

from collections.abc import Sequence

from stages.gpu import GpuState
from stages.serving.artifact import ClientCeiling
from stages.serving.load import Request, answered

MAX_FAILED_SHARE = 0.01
MAX_CLIENT_LOAD = 0.8  # of what the client does against a server that costs nothing
PROMPT_TOLERANCE = 0.05


def about_requests(requests: Sequence[Request], prompt_tokens: int, output_tokens: int) -> list[str]:
    """Failed requests, and prompts or answers that are not as long as they should be."""
    reasons, done = [], answered(requests)
    num_failed = len(requests) - len(done)
    if num_failed > MAX_FAILED_SHARE * len(requests):
        first = next(request["error"] for request in requests if request["error"] is not None)
        reasons.append(f"{num_failed} of {len(requests)} requests failed; the first: {first}")
    if wrong := [r["output_tokens"] for r in done if r["output_tokens"] != output_tokens]:
        reasons.append(f"{len(wrong)} answers have not {output_tokens} tokens; the first has {wrong[0]}")
    if off := [r["prompt_tokens"] for r in done if _is_off(r["prompt_tokens"], prompt_tokens)]:
        reasons.append(f"{len(off)} prompts are not of {prompt_tokens} tokens; the first has {off[0]}")
    return reasons


def about_client(rate: float, tokens_per_answer: int, ceiling: ClientCeiling) -> list[str]:
    """Whether the load client itself may have been the limit."""
    if ceiling.tokens_per_s is None:
        share, most = rate / ceiling.requests_per_s, f"{ceiling.requests_per_s:.0f} requests/s"
    else:
        share, most = rate * tokens_per_answer / ceiling.tokens_per_s, f"{ceiling.tokens_per_s:.0f} tokens/s"
    if share <= MAX_CLIENT_LOAD:
        return []
    return [
        f"the load client may be the limit: this is {share:.0%} of the {most} that it reaches against a null server; "
        "raise server.num_clients"
    ]


def about_http(rate: float, direct_rate: float | None, least_share: float) -> list[str]:
    """Whether the way to the engine, not the engine, was the limit."""
    if direct_rate is None or rate >= least_share * direct_rate:
        return []
    return [
        f"HTTP is the limit: {rate:.2f} requests/s through the server, {direct_rate:.2f} by the same engine directly; "
        "raise server.num_api_servers"
    ]


def about_spread(relative: float | None, limit: float, what: str) -> list[str]:
    """Whether repeats disagree."""
    if relative is None or relative <= limit:
        return []
    return [f"{what} spread by {relative:.0%}, more than {limit:.0%}"]


def about_company(was_busy: bool) -> list[str]:
    """Whether somebody else was on the GPUs before the server started."""
    return ["others were on the GPU when the server started (server.allow_busy_gpu)"] if was_busy else []


def about_gpus(before: Sequence[GpuState] | None, after: Sequence[GpuState] | None) -> list[str]:
    """Whether the GPUs were slowed down or shared while the point was measured."""
    reasons = []
    for early, late in zip(before or [], after or [], strict=True):
        if early.is_slowed or late.is_slowed:
            reasons.append(f"the GPU was slowed by heat or its power supply ({late.temperature_c} °C)")
        if late.num_processes != early.num_processes:
            reasons.append("another process came onto the GPU, or left it")
    return reasons


def _is_off(found: int | None, wanted: int) -> bool:
    return found is None or abs(found - wanted) > max(2, PROMPT_TOLERANCE * wanted)
