"""What a step of a plan occupies while it runs."""

from dataclasses import asdict, replace

from pipeline.config.schema import Config
from pipeline.steps.step import CEILINGS, DRIFT, EVALUATE, GATE, PROFILE, QUANTIZE, Resources, Stage


def resources_of(config: Config, stage: Stage) -> Resources:
    """What a step occupies: its stage's own share, save what ``cluster.stages`` says of it."""
    chosen = config.cluster.stages.get(stage.name)
    said = {} if chosen is None else {name: value for name, value in asdict(chosen).items() if value is not None}
    return replace(_own_resources(config, stage), **said)


def _own_resources(config: Config, stage: Stage) -> Resources:
    """The engine's share for whatever loads a model, one core for the rest."""
    engine = config.engine
    if stage is EVALUATE:
        return Resources(engine.num_cpus, engine.num_gpus, engine.pipeline_parallel_size)
    if stage is PROFILE:
        num_gpus = engine.num_gpus * config.server.replicas
        return Resources(engine.num_cpus, num_gpus, engine.pipeline_parallel_size, is_alone=True)
    if stage is CEILINGS:
        return Resources(engine.num_cpus, min(engine.num_gpus, 1), is_alone=True)
    if stage in (QUANTIZE, GATE, DRIFT):
        # llm-compressor and transformers spread over one GPU and offload the rest to the host's memory.
        return Resources(engine.num_cpus, min(engine.num_gpus, 1))
    return Resources()
