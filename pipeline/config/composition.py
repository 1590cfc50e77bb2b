"""Composition: from a command to a config.  Hydra composes, and nothing else of it acts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from hydra import compose, initialize_config_module
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict

from pipeline.config.command_line import Command
from pipeline.config.schema import register
from pipeline.errors import UserError
from pipeline.steps.fingerprint import differences


class _OwnConfigs(SearchPathPlugin):
    """Configs of the user's own are looked for after this project's."""

    directory: ClassVar[Path | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.directory is not None:
            search_path.append(provider="command-line", path=f"file://{self.directory}")


@contextmanager
def composition(command: Command) -> Iterator[DictConfig]:
    """The config that a command composes to; more can be composed from the same files until the block ends.

    Raises UserError where a file sets something of Hydra's: with it a config could run code of its choice.
    """
    register()
    Plugins.instance().register(_OwnConfigs)
    _OwnConfigs.directory = command.config_dir
    try:
        with initialize_config_module(version_base="1.3", config_module="conf"):
            composed = compose("config", overrides=command.overrides, return_hydra_config=True)
            if command.config_dir is not None:
                _check_hydra(composed, command.config_dir)
            with open_dict(composed):
                del composed["hydra"]
            yield composed
    finally:
        _OwnConfigs.directory = None


def _check_hydra(composed: DictConfig, config_dir: Path) -> None:
    ours = compose("config", return_hydra_config=True)
    if found := differences(_settings(ours), _settings(composed)):
        raise UserError(
            f"a file in {config_dir} sets hydra.{found[0][0]}: configs are data here and Hydra only composes them; "
            "take it out"
        )


def _settings(composed: DictConfig) -> dict[str, Any]:
    settings: Any = OmegaConf.to_container(composed.hydra, enum_to_str=True)
    del settings["overrides"], settings["runtime"], settings["job"]["override_dirname"]  # Hydra's own notes
    return dict(settings)
