"""When a published step ran, where, and on which GPUs: what its manifest's provenance says of that."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self


class Timing(NamedTuple):
    """Unix seconds of start and end; what older manifests do not say is None."""

    run_id: str
    host: str
    started: float
    ended: float
    stage_s: float  # the stage's own function, up to the end
    products: tuple[str, ...]  # every GPU of the host
    num_gpus: float | None = None
    gpus: tuple[str, ...] | None = None  # those that the step held, as ``INDEX UUID``
    expected_s: float | None = None
    num_exchanges: int = 0  # of weights in its session, before it

    @classmethod
    def recalled(cls, values: Sequence[Any]) -> Self:
        """From what JSON made of one."""
        return cls._make(tuple(value) if isinstance(value, list) else value for value in values)

    @property
    def seconds(self) -> float:
        return self.ended - self.started

    @property
    def before_s(self) -> float:
        """Inputs digested, a session opened."""
        return max(0.0, self.seconds - self.stage_s)

    def is_on(self, product: str | None) -> bool:
        """Whether the host has such a GPU."""
        return product is not None and any(product.lower() in each.lower() for each in self.products)


def timing_of(manifest: Mapping[str, Any]) -> Timing | None:
    """What a manifest says of when and where its step ran; None of one that does not."""
    said = manifest["provenance"]
    try:
        held = said.get("held_gpus")
        return Timing(
            run_id=str(said["run_id"]),
            host=str(said["host"]),
            started=float(said["started"]),
            ended=float(said["ended"]),
            stage_s=float(said["stage_s"]),
            products=tuple(map(str, said.get("gpus") or ())),
            num_gpus=_number(said.get("num_gpus")),
            gpus=None if held is None else tuple(f"{gpu['index']} {gpu['uuid']}" for gpu in held),
            expected_s=_number(said.get("expected_s")),
            num_exchanges=int(said.get("session", {}).get("exchanges", 0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
