"""What a step of a plan occupies while it runs."""

from dataclasses import asdict, replace

from pipeline.config.schema import Config
from pipeline.steps.stages import Occupies, Stage
from pipeline.steps.step import Resources


def resources_of(config: Config, stage: Stage) -> Resources:
    """What a step occupies: its stage's own share, save what ``cluster.stages`` says of it."""
    chosen = config.cluster.stages.get(stage.name)
    said = {} if chosen is None else {name: value for name, value in asdict(chosen).items() if value is not None}
    return replace(_own_resources(config, stage), **said)


def _own_resources(config: Config, stage: Stage) -> Resources:
    engine = config.engine
    match stage.occupies:
        case Occupies.engine:
            return Resources(engine.num_cpus, engine.num_gpus_held, engine.pipeline_parallel_size)
        case Occupies.server:
            num_gpus = engine.num_gpus * config.server.replicas
            return Resources(engine.num_cpus, num_gpus, engine.pipeline_parallel_size, is_alone=True)
        case Occupies.device:
            return Resources(engine.num_cpus, min(engine.num_gpus, 1), is_alone=True)
        case Occupies.model:
            # llm-compressor and transformers spread over one GPU and offload the rest to the host's memory.
            return Resources(engine.num_cpus, min(engine.num_gpus, 1))
        case Occupies.core:
            return Resources()
