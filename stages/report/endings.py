"""How prompts and answers ended, in words: what a reader must know before the score."""

from collections.abc import Iterator

from stages.report.artifact import Row
from stages.report.numbers import MISSING, number, percent

MANY_STOPPED = 0.1  # of a chat model's answers
MANY_CUT = 0.1  # of all answers


def endings(row: Row) -> Iterator[str]:
    """Of a trial's task: documents without a score, prompts and answers that were cut, turns ended at a stop string."""
    if row["num_missing"] or row["num_truncated"]:
        cut_to_fit = "" if row["num_truncated"] is None else f", {row['num_truncated']} cut to fit"
        yield f"{row['num_missing'] or 0} documents missing{cut_to_fit}"
    if row["num_cut"] or row["base_num_cut"]:
        yield _cut(row)
    if 0 in (row["num_thinking"], row["base_num_thinking"]):
        yield (
            "thoughts were looked for and none found, so all of each text is the answer (reasoning_end of its task "
            f"slot): {_sides(row, 'num_thinking')}"
        )
    stopped = [_share(row, side, "num_stopped") or 0 for side in ("", "base_")]
    if max(stopped) > MANY_STOPPED:
        yield f"a chat model's answers ended at a stop string, not at the end of its turn: {_sides(row, 'num_stopped')}"


def many_cut(row: Row) -> str | None:
    """That many answers, of the trial or its base, did not end: a score that says little of either."""
    shares = [_share(row, side, "num_cut") or 0 for side in ("", "base_")]
    return f"answers cut at the limit of tokens: {_sides(row, 'num_cut')}" if max(shares) > MANY_CUT else None


def _cut(row: Row) -> str:
    in_thoughts = ""
    if row["num_cut_in_thoughts"] or row["base_num_cut_in_thoughts"]:
        in_thoughts = f" (in its thoughts {_sides(row, 'num_cut_in_thoughts')})"
    return (
        f"answers cut at the limit of tokens: {_sides(row, 'num_cut')}{in_thoughts}; score of those that ended "
        f"{_number(row['finished_score'])}{_base(row, _number(row['base_finished_score']))}"
    )


def _sides(row: Row, name: str) -> str:
    """``6 of 6 (100 %), base 0 of 6 (0 %)``."""
    return _of(row, "", name) + _base(row, _of(row, "base_", name))


def _of(row: Row, side: str, name: str) -> str:
    if row[f"{side}{name}"] is None:
        return MISSING
    return f"{row[f'{side}{name}']} of {_num_documents(row, side)} ({percent(_share(row, side, name), 0)})"


def _base(row: Row, text: str) -> str:
    return "" if row["base_n"] is None else f", base {text}"


def _share(row: Row, side: str, name: str) -> float | None:
    if row[f"{side}{name}"] is None or not (total := _num_documents(row, side)):
        return None
    return float(row[f"{side}{name}"] / total)


def _num_documents(row: Row, side: str) -> int:
    return int((row[f"{side}n"] or 0) + (row[f"{side}num_missing"] or 0))


def _number(value: float | None) -> str:
    return number(value, 4)
