"""Values with special characters, and files that reach for Hydra's own settings."""

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.command_line import Command, check, parse, shown, text_of
from pipeline.config.composition import composition
from pipeline.config.schema import Config
from pipeline.config.sweep import expand, shared_config
from pipeline.errors import UserError

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
ODD = st.text(st.sampled_from("ab1 =#,:;'\"\\[]{}()$!&@%~é日/."), min_size=1)


def value_of(override: str) -> object:
    return OverridesParser.create().parse_override(override).value()


@given(TEXTS | ODD)
def test_what_is_shown_for_a_value_is_read_back_as_that_value(value: str) -> None:
    [override] = shlex.split(shown("store.root", value))
    check([override])
    assert str(value_of(override)) == value


@given(TEXTS | ODD)
def test_a_value_that_cannot_be_read_is_refused_with_one_that_can(value: str) -> None:
    try:
        check([f"store.root={value}"])
    except UserError as error:
        advised = shlex.split(str(error).partition("quote it: ")[2])
        assert advised, error
        check([text for text in advised if text != "or"])


@pytest.mark.parametrize(
    ("typed", "advice"),
    [
        ("store.root=a=b", "'store.root=\"a=b\"'"),
        ("store.root=a#b", "'store.root=\"a#b\"'"),
        ("store.root=/data/my runs/k=v", "'store.root=\"/data/my runs/k=v\"'"),
        ("sweep.name=été", "'sweep.name=\"été\"'"),
        ("only=a/*,b", "'only=[a/*,b]' or 'only=\"a/*,b\"'"),
        ("data.task_paths=[a#b,c]", "'data.task_paths=[\"a#b\",c]'"),
        ("recipe.scheme=odd(1)", "'recipe.scheme=\"odd(1)\"'"),
    ],
)
def test_the_quoted_form_of_a_value_is_shown(typed: str, advice: str) -> None:
    with pytest.raises(UserError) as refused:
        check([typed])
    assert str(refused.value).endswith(f"quote it: {advice}")


def test_a_tilde_is_shown_as_the_home_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    with pytest.raises(UserError, match=r"quote it: store\.root=/home/me/x$"):
        check(["store.root=~/x"])


def test_a_file_of_failures_may_have_any_name() -> None:
    assert text_of('failures.from="a#b=c.json"') == "a#b=c.json"


@pytest.mark.parametrize("option", ["--multirun", "--config-path=x", "--cf", "--config-dir=nowhere"])
def test_an_option_that_would_do_nothing_is_refused(option: str) -> None:
    with pytest.raises(UserError, match=r"quantsweep --help|not a directory"):
        parse(["+sweep=smoke", option])


@pytest.mark.parametrize(
    "text", ["hydra.verbose=true", "+hydra.callbacks.a={_target_: os.getcwd}", "hydra/launcher=x", "+x@hydra.env=y"]
)
def test_hydra_s_own_settings_are_not_for_the_command_line(text: str) -> None:
    with pytest.raises(UserError, match="is about Hydra itself"):
        parse([text])


CALL = "{_target_: pathlib.Path.touch, self: {_target_: pathlib.Path, _args_: [TOUCHED]}}"
FILES = {
    "callbacks": {"sweep/mine.yaml": f"# @package _global_\nhydra: {{callbacks: {{a: {CALL}}}}}\n"},
    "a package": {
        "sweep/mine.yaml": "# @package _global_\ndefaults: [/own@hydra.callbacks: a, _self_]\n",
        "own/a.yaml": f"a: {CALL}\n",
    },
    "where a run is": {"sweep/mine.yaml": "# @package _global_\nhydra: {run: {dir: elsewhere}, output_subdir: x}\n"},
    "many runs": {"sweep/mine.yaml": "# @package _global_\nhydra: {mode: MULTIRUN}\n"},
    "the environment": {"sweep/mine.yaml": "# @package _global_\nhydra: {job: {env_set: {A: b}}}\n"},
}


@pytest.mark.parametrize("files", FILES.values(), ids=list(FILES))
def test_a_file_that_sets_something_of_hydra_s_is_refused_and_runs_nothing(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        path = tmp_path / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("TOUCHED", str(tmp_path / "touched")))
    command = Command(["+sweep=mine"], tmp_path / "own")
    with pytest.raises(UserError, match=r"own sets hydra\.\w+"), composition(command):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_an_axis_has_values_with_any_characters(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "été 1.yaml").write_text(
        "defaults: [recipe_schema, _self_]\nname: odd\nalgorithm: rtn\nscheme: W4A16\n"
    )
    (tmp_path / "sweep" / "mine.yaml").write_text("# @package _global_\nsweep: {axes: {recipe: [été 1]}}\n")
    command = Command(["+sweep=mine", "suite=none"], tmp_path)
    with composition(command) as composed:
        shared: Config = shared_config(composed, command.overrides)
        assert "smollm2_135m/odd" in [trial.name for trial in expand(command.overrides, shared)]
