"""What README says was measured is what the files beside the benchmarks say."""

from pathlib import Path

from tests.benchmarks import profile

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_table_of_serving_costs_is_that_of_the_measured_points():
    assert profile.table(Path(profile.__file__).with_name("profile_h100.parquet")) in README
