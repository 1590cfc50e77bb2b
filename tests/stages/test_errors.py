"""No secret passes through a message."""

import pickle

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
    "AWS_SECRET_ACCESS_KEY={}",
    "aws_secret_access_key: {}",
    '{{"aws_session_token": "{}"}}',
    "MLFLOW_TRACKING_PASSWORD={}",
    "MLFLOW_TRACKING_TOKEN={}",
    "HF_TOKEN={}",
    "WANDB_API_KEY={}",
    "db_password='{}'",
    "x-api-key: {}",
    "X-Auth-Token: {}",
    "AccountName=me;AccountKey={};EndpointSuffix=x",
]
TOKENS = [
    "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "ghs_abcdefghijklmnopqrstuvwxyz0123456789",
    "github_pat_11ABCDEFG0abcdefghijkl_abcdefghijklmnopqrstuvwxyz0123456789",
    "glpat-abcdefghij0123456789",
    "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789ABCD",
    "sk-ant-api03-abc_defghijklmnop-0123",
    "AKIAIOSFODNN7EXAMPLE",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
]


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_secret_is_left_out_of_a_message_and_its_surroundings_are_not(holder: str) -> None:
    text = f"could not reach {holder.format(SECRET)} (attempt 1 of 3)"
    shown = one_line(OSError(text))
    assert SECRET not in shown
    assert shown.startswith("OSError: could not reach ")
    assert shown.endswith("(attempt 1 of 3)")
    assert one_line(DataError(text)) == str(DataError(text)) == redacted(text)
    assert str(pickle.loads(pickle.dumps(DataError(text)))) == redacted(text)
    assert redacted(shown) == shown


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_is_known_by_its_shape(token: str) -> None:
    assert redacted(f"the hub refused {token}, as it said") == "the hub refused ***, as it said"


def test_a_long_line_takes_no_longer_than_its_length() -> None:
    """Lines of logs may hold thousands of addresses; what grows with the square of that would take a minute here."""
    line = ",".join(f"http://host{number}:80{number}/x" for number in range(20_000))
    assert redacted(line) == line


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
        "hf-internal-testing/tiny-random-LlamaForCausalLM",
        "log: /data/store/logs/fetch_model/hf-internal-testing-tiny-random-0123456789ab.log",
        "mlflow ui --backend-store-uri sqlite:////data/sk_experiments_of_2026/team-a/mlflow.db",
        "sk_llama_8b_instruct_v2/w4a16 and sk-llama-8b-instruct-v2-w4a16-g128",
        "in hf_model_weights_files_only_of_this",
        "http://localhost:5000/#/experiments/1/runs/foo@bar",
        "tcp://10.0.0.1:6379,user@host",
        "abfss://container@account.dfs.core.windows.net/x and ssh://git@github.com/a/b",
        "http://host/x?author=me&keyboard=de&passage=3&tokenizer=a&max_tokens=5&design=b&monkey=c",
        "You may pass: yes or no",
        "model.source.path=/a/b: no such token: it has 12 tokens",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text
