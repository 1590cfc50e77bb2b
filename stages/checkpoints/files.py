"""Which files of a directory are the model: its weights, and the small ones that loaders read beside them."""

from collections.abc import Iterable
from pathlib import Path

from stages.checkpoints.shape import read_description
from stages.errors import CheckpointError, DataError

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
# Tokenizers, processors, templates and settings, whatever their names; never code, pickles or weights.
SMALL = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".vocab", ".bpe", ".spm")
# A second model beside this one: adapters, another layout's description; a trainer's notes, and a store's.
_OF_OTHERS = ("adapter_", "params.json", "trainer_state.json", "manifest.json")
_TEMPLATES = "additional_chat_templates"


def is_small_file(place: str) -> bool:
    """Whether a loader may read the file at ``place``, relative to the model's directory, beside the weights."""
    folder, _, name = place.rpartition("/")
    if folder:
        return folder == _TEMPLATES and name.endswith(".jinja")
    if name.startswith(_OF_OTHERS) or name.endswith(".index.json"):
        return False
    return Path(name).suffix in SMALL or name.startswith("tokenizer.model")


def companions(model_dir: Path) -> list[Path]:
    """What a model is read from beside weights and config.json: tokenizer, processor, templates, generation config."""
    files = [*model_dir.iterdir(), *model_dir.glob(f"{_TEMPLATES}/*")]
    places = {file.relative_to(model_dir).as_posix(): file for file in files if file.is_file()}
    return [places[place] for place in sorted(places) if is_small_file(place) and place != CONFIG]


def model_files(model_dir: Path) -> list[Path]:
    """All that is the model: config.json, weights with their index, and what is read beside them."""
    index = [model_dir / INDEX] if (model_dir / INDEX).is_file() else []
    return [model_dir / CONFIG, *companions(model_dir), *index, *weight_files(model_dir)]


def indexed_files(index: Path) -> list[str]:
    """Names of the files that an index of weights names."""
    names = sorted(set(weight_map(index).values()))
    if strange := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"{index} names {strange[0]}, which does not lie beside it; save the model again")
    return names


def weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor; CheckpointError for an index that is damaged."""
    try:
        found = read_description(index).get("weight_map")
    except DataError:
        found = None
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise CheckpointError(f"{index} is damaged; fetch it again")
    return found


def weight_files(model_dir: Path) -> list[Path]:
    """The files that loaders take weights from: those that the index names, or model.safetensors, or else all.

    Raises CheckpointError where one of them is missing, or where loaders would disagree.
    """
    index = model_dir / INDEX
    if not index.is_file():
        whole = model_dir / WHOLE
        found = [whole] if whole.is_file() else sorted(model_dir.glob("*.safetensors"))
        if not found:
            raise CheckpointError(f"{model_dir} holds no *.safetensors")
        return found
    files = [model_dir / name for name in indexed_files(index)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(
            f"{model_dir}: {first_of(missing)}, which {INDEX} names, is missing; fetch it again, or remove the index "
            f"if {WHOLE} is the whole model"
        )
    if (model_dir / WHOLE).is_file() and model_dir / WHOLE not in files:
        raise CheckpointError(
            f"{model_dir} holds {WHOLE}, and {INDEX}, which names {files[0].name}: loaders differ in which they read; "
            "remove one"
        )
    return files


def first_of(names: Iterable[str]) -> str:
    """The first name, and how many more."""
    first, *others = names
    return f"{first} and {len(others)} more" if others else first
