"""A page of flipped documents: nothing in it is markup that a model wrote, and a large sweep's stay small."""

import json
import re
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.compare.config import CompareConfig
from stages.compare.stage import compare
from stages.report.artifact import most_flips
from stages.report.config import ReportConfig, TrialRow
from stages.report.flips import cut
from stages.report.stage import report

NASTY = [
    "</pre><script>alert('said')</script>",
    "<img src=x onerror=alert(1)>",
    "{{ 7 * 7 }} {% raw %}",
    "]]> --> \u202egnp.exe \x00 &amp; \"quoted\" 'so'",
    "</article></section><style>*{display:none}</style>",
]


class Articles(HTMLParser):
    """The texts of each article, and every tag that there is."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, tuple(name for name, _ in attributes)))
        if tag == "article":
            self.texts.append("")

    def handle_data(self, data):
        if self.texts:
            self.texts[-1] += data


@pytest.fixture
def pages(write_evaluation, tmp_path):
    """The pages of trials of one task with five documents, all of them lost."""

    def pages(names, answers=NASTY, number=5):
        base, inputs = write_evaluation("t", [1.0] * number), {}
        for index, name in enumerate(names):
            own = write_evaluation("t", [0.0] * number)
            table = pq.read_table(own / "samples.parquet")
            said = pa.array([[answers[doc % len(answers)]] for doc in range(number)], pa.list_(pa.string()))
            pq.write_table(
                table.set_column(table.column_names.index("responses"), "responses", said), own / "samples.parquet"
            )
            out = tmp_path / f"compared-{index}"
            out.mkdir()
            compare(CompareConfig(task="t", leaves=["t"]), {"trial/t": own, "base/t": base}, out)
            inputs[f"compare/{name}/t"] = out
        trials = [TrialRow(name=name, model="m", recipe=f"r{index}", base="m/bf16") for index, name in enumerate(names)]
        out = tmp_path / "report"
        out.mkdir()
        report(ReportConfig(title="a <sweep>", trials=trials, tasks=["t"]), inputs, out)
        return out

    return pages


def test_what_a_model_wrote_is_text_and_nothing_else(pages):
    out = pages(["m/<b>r0</b>"])
    (page,) = (out / "flips").iterdir()
    found = Articles(page.read_text(encoding="utf-8"))
    assert len(found.texts) == 5
    shown = "".join(found.texts)
    assert all(text.replace("\x00", "") in shown.replace("\x00", "").replace("\ufffd", "") for text in NASTY)
    assert [tag for tag, _ in found.tags].count("script") == 1  # the page's own
    assert not [tag for tag in found.tags if tag[0] in ("img", "b") and tag != ("b", ())]
    assert not [names for _, names in found.tags if any(name.startswith("on") and name != "onsubmit" for name in names)]


def test_the_report_leads_to_each_trial_s_page_whatever_it_is_called(pages):
    names = ["m/a b", "m/a-b", "../../etc", "m/%2e?x#y", "m/" + "long" * 60]
    out = pages(names)
    links = re.findall(r'href="(flips/[^"]+)"', (out / "report.html").read_text())
    assert len(set(links)) == len(names)
    for link in links:
        assert re.fullmatch(r"flips/[A-Za-z0-9._-]+\.html", link) and (out / link).is_file()
    assert {path.parent.name for path in out.rglob("*.html")} == {"report", "flips"}


def test_all_are_counted_where_only_some_are_shown(pages):
    out = pages(["m/r0"], answers=["x" * 5000], number=300)
    text = (out / "flips" / "m-r0.html").read_text()
    assert text.count("<article") == 200
    assert "300 documents score otherwise in acc,none, of which 200 are here; all are in flips.parquet" in text
    assert len(text) < 600_000
    assert "characters …" in text
    table = pq.read_table(next(out.parent.glob("compared-0")) / "flips.parquet")
    assert table.num_rows == 300 and table["trial_answers"][0].as_py() == ["x" * 5000]


@pytest.mark.parametrize(("cells", "number"), [(1, 200), (117, 200), (300, 100), (2600, 20), (10**6, 20)])
def test_a_large_sweep_shows_fewer_of_each(cells, number):
    assert most_flips(cells) == number


def test_a_long_text_keeps_its_beginning_and_its_end():
    text = "begin" + "x" * 1000 + "the answer is 4"
    assert cut(text, 2000) == text
    assert cut(text, 100).startswith("begin") and cut(text, 100).endswith("the answer is 4")
    assert f"{len(text) - 100:,} characters" in cut(text, 100)


def test_what_changes_between_two_runs_of_one_checkpoint_is_said_beside_what_changed(write_evaluation, tmp_path):
    scores = {"trial/t": [0.0] * 3 + [1.0] * 37, "base/t": [1.0] * 40, "base_rerun/1/t": [0.0, 0.0] + [1.0] * 38}
    (tmp_path / "compared").mkdir()
    inputs = {role: write_evaluation("t", own) for role, own in scores.items()}
    compare(CompareConfig(task="t", leaves=["t"]), inputs, tmp_path / "compared")
    trials = [TrialRow(name="m/r", model="m", recipe="r", base="m/bf16")]
    report(ReportConfig(title="t", trials=trials, tasks=["t"]), {"compare/m/r/t": tmp_path / "compared"}, tmp_path)
    page = (tmp_path / "flips" / "m-r.html").read_text()
    assert "3 documents score otherwise in acc,none" in page
    assert "Between two runs of the base 2 of 40 change." in page
    assert "two runs of this checkpoint" not in page


def test_a_report_without_comparisons_has_no_pages(tmp_path):
    report(ReportConfig(title="t", trials=[TrialRow(name="m/r", model="m", recipe="r")], tasks=["t"]), {}, tmp_path)
    assert not (tmp_path / "flips").exists()
    assert json.loads((tmp_path / "summary.json").read_text())["trials"][0]["trial"] == "m/r"
