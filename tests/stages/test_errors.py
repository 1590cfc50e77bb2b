"""No secret passes through a message."""

import pytest

from stages.errors import DataError, one_line, redacted

SECRET = "Tr0ub4dor-and-3"
HOLDERS = [
    "http://user:{}@host/path",
    "HTTPS://{}@host:443",
    "postgresql+psycopg2://postgres:{}@db/mlflow?host=/tmp",
    "s3://AKEY:{}@bucket/prefix",
    "hdfs://user:a/b{}@host/path",
    "http://user:p@{}@host",
    "http://user:p#{}@host/x",
    "https://host/file?token={}&x=1",
    "https://host/file?x=1&access_token={}",
    "https://host/file?X-Amz-Signature={}",
    "https://host/file?sv=2020&sig={}",
    "https://host/file?AWSAccessKeyId={}",
    "https://host/file?api_key={}",
    "https://host/file?X-Amz-Security-Token={}#top",
    "Authorization: Bearer {}",
    "{{'Authorization': 'Basic {}'}}",
    "host=db password={} dbname=x",
    '{{"password": "{}"}}',
    "api_key: {}",
    "hf_{0}{0}",
]


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_secret_is_left_out_of_a_message_and_its_surroundings_are_not(holder: str) -> None:
    text = f"could not reach {holder.format(SECRET)} (attempt 1 of 3)"
    shown = one_line(OSError(text))
    assert SECRET not in shown
    assert shown.startswith("OSError: could not reach ")
    assert shown.endswith("(attempt 1 of 3)")
    assert one_line(DataError(text)) == redacted(text)
    assert redacted(shown) == shown


def test_several_places_on_one_line_keep_what_lies_between() -> None:
    assert (
        redacted("from http://a:b@one to http://c@two?x=1&token=d")
        == "from http://***@one to http://***@two?x=1&token=***"
    )


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/api/2.0/mlflow/runs/search",
        "sqlite:////data/mlflow.db",
        "the store s3://bucket/prefix cannot be written: choose store.root=DIR",
        "unknown key 'tokenizer' in EngineConfig: max_gen_toks, eos_token_id=3, num_tokens=12",
        "KeyError: 'key'",
        "org/name@0123456789abcdef",
        "write to me@example.org",
        "model.source.path=/a/b: no such token: it has 12 tokens",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text
