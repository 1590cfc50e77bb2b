"""Composition: from a command to a config.  Hydra composes, and nothing else of it acts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from hydra import compose, initialize_config_module
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict

from pipeline.config.command_line import Command, as_text, key_of, value_of
from pipeline.config.schema import register
from pipeline.errors import UserError
from pipeline.steps.fingerprint import differences
from stages.fetch import ModelSource


class _OwnConfigs(SearchPathPlugin):
    """Configs of the user's own are looked for after this project's."""

    directory: ClassVar[Path | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.directory is not None:
            search_path.append(provider="command-line", path=f"file://{self.directory}")


@contextmanager
def composition(command: Command, has_choices: bool = False) -> Iterator[DictConfig]:
    """The config that a command composes to; more can be composed from the same files until the block ends.

    ``has_choices``: Hydra's own settings, which say what file each group is of, are left in it.

    Raises UserError for a file that would not be read, and for one that sets something of Hydra's: with it a config
    could run code of its choice.
    """
    register()
    if command.config_dir is not None:
        _check_names(command.config_dir)
    Plugins.instance().register(_OwnConfigs)
    _OwnConfigs.directory = command.config_dir
    try:
        with initialize_config_module(version_base="1.3", config_module="conf"):
            composed = compose("config", overrides=command.overrides, return_hydra_config=True)
            if command.config_dir is not None:
                _check_hydra(composed, command.config_dir)
            if not has_choices:
                with open_dict(composed):
                    del composed["hydra"]
            yield composed
    finally:
        _OwnConfigs.directory = None


def with_own_model(command: Command) -> Command:
    """``command`` where a model's path, or its hub repository, given alone takes the place of the default model.

    One that the command line or a sweep's file chooses stays, and two places for its bytes are refused.
    """
    source = _own_source(command.overrides)
    places = [place for place in ("repo_id", "path", "package") if place in source]
    if len(places) != 1 or any(key_of(text) == "model" for text in command.overrides):
        return command
    with composition(command, has_choices=True) as composed:
        default = compose("config", return_hydra_config=True).hydra.runtime.choices.model
        if composed.hydra.runtime.choices.model != default or "model" in composed.sweep.axes:
            return command
    name = str(source[places[0]]).rstrip("/")
    others = [f"model.source.{each.name}=null" for each in fields(ModelSource) if each.name not in source]
    if not any(key_of(text).startswith("model.shape") for text in command.overrides):
        others.append("model.shape=null")
    shown = Path(name).expanduser().resolve().name if places[0] == "path" else name.split("/")[-1]
    return replace(command, overrides=[*others, "model.note=null", f"model.name={as_text(shown)}", *command.overrides])


def _own_source(overrides: Sequence[str]) -> dict[str, Any]:
    """What a command line says of a model's source, key by key or all at once."""
    found: dict[str, Any] = {}
    for text in overrides:
        section, _, name = key_of(text).rpartition(".")
        if section == "model.source":
            found[name] = value_of(text)
        elif key_of(text) == "model.source" and isinstance(value := value_of(text), dict):
            found |= {str(key): each for key, each in value.items()}
    return found


def _check_names(config_dir: Path) -> None:
    """Of two files with one name Hydra takes the project's and says nothing."""
    for file in sorted(config_dir.glob("*/*.yaml")):
        place = file.relative_to(config_dir)
        twin = resources.files("conf").joinpath(*place.parts)
        if twin.is_file() and twin.read_bytes() != file.read_bytes():
            raise UserError(f"{place} in {config_dir} would not be read, this project has one of that name: rename it")


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
