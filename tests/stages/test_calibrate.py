"""Calibration sequences: seeded, without special tokens when random, rendered as chats when read from a data set."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from stages.calibrate import SEQUENCES, CalibrationConfig, CalibrationMethod, calibrate, read_sequences
from stages.checkpoints.chat import render_chat
from stages.errors import DataError
from stages.fetch import DatasetSource

SOURCE = DatasetSource(repo_id="org/chats")
CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: default/train.parquet\n---\n"


@pytest.fixture
def run(tiny_model, tmp_path_factory):
    """Calibrate and return the token ids, with the file's bytes."""

    def calibrate_once(config, data_dir=None):
        out = tmp_path_factory.mktemp("calibration")
        inputs = {"model": tiny_model} if data_dir is None else {"model": tiny_model, "data": data_dir}
        metrics = calibrate(config, inputs, out)
        samples = read_sequences(out)
        assert metrics["num_samples"] == len(samples) and metrics["num_tokens"] == sum(map(len, samples))
        assert metrics["num_distinct"] == len(set(map(tuple, samples)))
        return samples, (out / SEQUENCES).read_bytes()

    return calibrate_once


@pytest.fixture
def chats(tmp_path):
    """Twelve question-answer rows in the hub's layout."""
    rows = {"question": [f"What is {n} plus {n}?" for n in range(12)], "answer": [f"It is {2 * n}." for n in range(12)]}
    return write_dataset(tmp_path / "chats", rows)


def write_dataset(path, columns):
    (path / "default").mkdir(parents=True, exist_ok=True)
    (path / "README.md").write_text(CARD)
    pq.write_table(pa.table(columns), path / "default" / "train.parquet")
    return path


def random_tokens(**changes):
    return CalibrationConfig(**{"num_calibration_samples": 8, "max_seq_length": 32} | changes)


def from_chats(**changes):
    fields = {
        "prompt_field": "question",
        "response_field": "answer",
        "num_calibration_samples": 5,
        "max_seq_length": 512,
    }
    return CalibrationConfig(method=CalibrationMethod.dataset, dataset=SOURCE, **fields | changes)


def test_random_tokens_fill_every_sample_and_are_never_special(run, tiny_model):
    samples, _ = run(random_tokens(num_calibration_samples=64, max_seq_length=256))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert [len(sample) for sample in samples] == [256] * 64
    seen = {token for sample in samples for token in sample}
    assert seen == set(range(len(tokenizer))) - set(tokenizer.all_special_ids)


def test_random_tokens_repeat_with_their_seed_and_only_with_it(run):
    assert run(random_tokens())[1] == run(random_tokens())[1]
    assert run(random_tokens())[1] != run(random_tokens(seed=1))[1]


def test_rows_become_chats_in_the_models_own_template(run, chats, tiny_model):
    samples, _ = run(from_chats(num_calibration_samples=12), chats)
    texts = AutoTokenizer.from_pretrained(tiny_model).batch_decode(samples)
    turn = "<|im_start|>user\nWhat is {n} plus {n}?<|im_end|>\n<|im_start|>assistant\nIt is {double}.<|im_end|>\n"
    assert sorted(texts) == sorted(turn.format(n=n, double=2 * n) for n in range(12))


def test_rows_are_shuffled_by_the_seed(run, chats):
    assert run(from_chats(), chats) == run(from_chats(), chats)
    assert run(from_chats(), chats)[0] != run(from_chats(seed=1), chats)[0]


def test_long_rows_are_truncated(run, chats):
    whole, _ = run(from_chats(), chats)
    cut, _ = run(from_chats(max_seq_length=20), chats)
    assert cut == [sample[:20] for sample in whole]


def test_ready_messages_and_plain_text(run, tmp_path, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    messages = [{"role": "user", "content": "A map?"}, {"role": "assistant", "content": "A road."}]
    data = write_dataset(tmp_path / "mixed", {"messages": [messages], "text": ["rain on the roof"]})
    one = {"prompt_field": None, "response_field": None, "num_calibration_samples": 1, "teaches": False}
    chat, _ = run(from_chats(messages_field="messages", **one), data)
    assert tokenizer.decode(chat[0]) == render_chat(tokenizer, messages, add_generation_prompt=False)
    text, _ = run(from_chats(text_field="text", **one), data)
    assert tokenizer.decode(text[0]) == "rain on the roof"


def test_too_few_rows_are_counted_in_the_refusal(run, chats):
    with pytest.raises(DataError, match="12 usable rows, fewer than num_calibration_samples=13") as refusal:
        run(from_chats(num_calibration_samples=13), chats)
    assert "\n" not in str(refusal.value)


def from_texts(**changes):
    return from_chats(text_field="text", prompt_field=None, response_field=None, **changes)


def test_a_row_that_repeats_another_is_taken_once(run, tmp_path, tiny_model):
    texts = [f"{letter} is the first of many letters in a long and a winding row" for letter in "ABCDEF"]
    data = write_dataset(tmp_path / "rows", {"text": [*texts, *texts, "", texts[0]]})
    samples, _ = run(from_texts(num_calibration_samples=6), data)
    assert sorted(AutoTokenizer.from_pretrained(tiny_model).batch_decode(samples)) == texts
    with pytest.raises(
        DataError, match=r"6 usable rows \(7 repeat others, 1 are empty\), fewer than num_cal.*at most 6$"
    ):
        run(from_texts(num_calibration_samples=7), data)


def test_fewer_tokens_than_a_layer_has_inputs_are_refused_with_both_numbers(run, tmp_path):
    data = write_dataset(tmp_path / "rows", {"text": list("abcdefghijklmnop")})
    with pytest.raises(
        DataError, match=r"16 rows of .* hold 16 tokens, fewer than the 64 inputs of a layer: ask for more"
    ):
        run(from_texts(num_calibration_samples=16, max_seq_length=16), data)
    assert len(run(from_texts(num_calibration_samples=16, max_seq_length=16, teaches=False), data)[0]) == 16


def test_rows_that_repeat_one_of_a_token_are_refused_by_rows_and_tokens(run, tmp_path):
    data = write_dataset(tmp_path / "rows", {"text": ["a"] * 16})
    with pytest.raises(
        DataError, match=r"1 usable rows \(15 repeat others.*samples=16; they hold 1 tokens, fewer than the 64"
    ):
        run(from_texts(num_calibration_samples=16), data)


def test_a_small_share_of_the_tokens_that_were_asked_for_is_refused_with_both_numbers(run, chats):
    whole, _ = run(from_chats(num_calibration_samples=12), chats)
    num_tokens = sum(map(len, whole))
    with pytest.raises(
        DataError, match=rf"hold {num_tokens} tokens, fewer than 1% of the 1200000 .* lower max_seq_length"
    ):
        run(from_chats(num_calibration_samples=12, max_seq_length=100_000), chats)


GOOD = [{"role": "user", "content": "A map?"}]


@pytest.mark.parametrize(
    ("fields", "good", "bad", "found"),
    [
        ({"text_field": "a"}, "some text that is long enough", None, "None and no text in column a"),
        ({"text_field": "a"}, 1.5, 2.5, "1.5 and no text in column a"),
        ({"prompt_field": "a"}, "What is it?", None, "None and no text in column a"),
        ({"prompt_field": "b", "response_field": "a"}, "An answer.", None, "None and no text in column a"),
        ({"messages_field": "a"}, GOOD, None, "None and no messages with role and content in column a"),
        ({"messages_field": "a"}, GOOD, [], r"\[\] and no messages with role and content"),
        ({"messages_field": "a"}, GOOD, [{"role": None, "content": "x"}], "and no messages with role and content"),
        ({"messages_field": "a"}, GOOD, [{"role": "user", "content": None}], "and no messages with role and content"),
    ],
)
def test_the_first_row_that_cannot_be_read_is_named_with_what_is_in_it(run, tmp_path, fields, good, bad, found):
    data = write_dataset(tmp_path / "rows", {"a": [good, good, bad, good, bad], "b": list("vwxyz")})
    none = dict.fromkeys(("text_field", "prompt_field", "response_field", "messages_field"))
    row = 2 if good not in (1.5,) else 0
    with pytest.raises(
        DataError, match=rf"org/chats/default split train: row {row} \(from 0\) has .*{found}"
    ) as refusal:
        run(from_chats(**none | fields), data)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "content", [b'{"text": "cut o', b'{"text": "caf\xe9"}\n', b""], ids=["cut", "latin-1", "empty"]
)
def test_a_file_that_cannot_be_read_is_named_in_one_line(run, tmp_path, content):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_bytes(content)
    with pytest.raises(
        DataError, match=r"org/chats/default split train cannot be read: .*mend or leave out"
    ) as refusal:
        run(from_chats(prompt_field=None, response_field=None, text_field="text"), tmp_path / "rows")
    assert "\n" not in str(refusal.value)


def test_a_chat_that_the_template_refuses_is_named(tiny_model, tmp_path):
    data = write_dataset(tmp_path / "rows", {"messages": [[{"role": "system", "content": "Be brief."}]] * 3})
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    config = from_chats(prompt_field=None, response_field=None, messages_field="messages")
    with pytest.raises(DataError, match=r"the model's chat template takes no row \d .*no system role"):
        calibrate(config, {"model": model, "data": data}, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"response_field": "reply"}, "no column reply; it has question, answer"),
        ({"split": "validation"}, "org/chats/default split validation cannot be read"),
        ({"subset": "other"}, "org/chats/other split train cannot be read"),
    ],
)
def test_what_a_data_set_lacks_is_named(run, chats, change, message):
    with pytest.raises(DataError, match=message) as refusal:
        run(from_chats(**change), chats)
    assert "\n" not in str(refusal.value)


def test_changed_files_are_read_anew_and_no_global_cache_is_written(run, chats, monkeypatch, tmp_path):
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "global_cache")
    before, _ = run(from_chats(), chats)
    write_dataset(chats, {"question": [f"Which letter, {n}?" for n in range(12)], "answer": ["B"] * 12})
    after, _ = run(from_chats(), chats)
    assert before != after
    assert not (tmp_path / "global_cache").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": CalibrationMethod.dataset, "prompt_field": "q"}, r"needs dataset\.repo_id"),
        ({"method": CalibrationMethod.dataset, "dataset": SOURCE}, "exactly one of text_field"),
        (
            {"method": CalibrationMethod.dataset, "dataset": SOURCE, "text_field": "t", "response_field": "r"},
            "needs prompt",
        ),
        ({"dataset": SOURCE}, "random_tokens reads no data set"),
        ({"num_calibration_samples": 0}, "at least 1"),
    ],
)
def test_contradictory_config_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        CalibrationConfig(**fields)


def test_a_template_that_prints_the_date_prints_the_same_every_day(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}: {{ messages[0]['content'] }}"
    assert render_chat(tokenizer, [{"role": "user", "content": "hi"}], add_generation_prompt=True) == "26 Jul 2024: hi"


def test_model_without_template_asks_for_plain_text(tiny_model, chats, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())
    assert "chat_template" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    with pytest.raises(DataError, match="no chat template"):
        calibrate(from_chats(), {"model": tmp_path, "data": chats}, tmp_path)
