"""Mathador: reach a target number from five base numbers, for points (the game of Mathador-LM, arXiv 2406.12572).

Problems are generated from a seed, so nothing is downloaded and a fresh set can always be drawn.  Every target has an
18-point solution: all expressions over all subsets of the base numbers are enumerated, and the other targets dropped.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from itertools import cycle, islice, product
from typing import Any

DICE = (4, 6, 8, 12, 20)  # the official dice; a die gives 1 to its number of faces
LEVELS = ("easy", "medium", "hard")
NUM_SHOTS = 16  # few-shot problems to choose from; a prompt takes the first num_fewshot
TARGET_POINTS = 5
POINTS = {"+": 1, "-": 2, "*": 1, "/": 3}
BONUS_POINTS = 6  # for using each operation exactly once
MAX_POINTS = 18
FAILURES = ("wrong_format", "wrong_calculation", "illegal_number", "illegal_intermediate", "wrong_result")

# A multiset of operations is one octal digit per operation: the sum of two codes is the union of two multisets.
PLUS, MINUS, TIMES, DIVIDED = 0o1, 0o10, 0o100, 0o1000
CODES = {"+": PLUS, "-": MINUS, "*": TIMES, "/": DIVIDED}
SYMBOLS = {code: symbol for symbol, code in CODES.items()}
EACH_ONCE = PLUS + MINUS + TIMES + DIVIDED

NUMBER = r"(-?[0-9]{1,12}(?:\.[0-9]+)?)"
LINE = re.compile(rf"\s*{NUMBER}\s*([-+*/−–×xX·÷:])\s*{NUMBER}\s*=\s*{NUMBER}\s*")
SPELLINGS = str.maketrans("−–×xX·÷:", "--****//")

Numbers = tuple[int, ...]


@cache
def points(ops: int) -> int:
    """Points of a solution that reaches the target with the multiset of operations ``ops``."""
    earned = sum(POINTS[symbol] * (ops // code % 8) for symbol, code in CODES.items())
    return TARGET_POINTS + earned + (BONUS_POINTS if ops == EACH_ONCE else 0)


def calculate(a: int, symbol: str, b: int) -> int | None:
    """The value of one operation; None where the game has no number for it (negative, fraction, division by zero)."""
    if symbol == "+":
        return a + b
    if symbol == "-":
        return a - b if a >= b else None
    if symbol == "*":
        return a * b
    return a // b if b and a % b == 0 else None


# ---- solver


def splits(numbers: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    """Every way to deal the numbers to two operands, neither of them empty; their order is left open."""
    for mask in range(1, 2 ** (len(numbers) - 1)):
        yield subset(numbers, mask), subset(numbers, ~mask)


def subset(numbers: Numbers, mask: int) -> Numbers:
    return tuple(number for bit, number in enumerate(numbers) if mask >> bit & 1)


@lru_cache(maxsize=512)  # throws have many subsets in common; 512 tables are about 10 MiB
def expressions(numbers: Numbers) -> Mapping[tuple[int, int], int]:
    """How many expressions use all of ``numbers`` (sorted) and have a given (value, operations)."""
    if len(numbers) == 1:
        return {(numbers[0], 0): 1}
    counts: dict[tuple[int, int], int] = defaultdict(int)
    for first, second in splits(numbers):
        for (a, ops_a), count_a in expressions(first).items():
            for (b, ops_b), count_b in expressions(second).items():
                # Both orders of `calculate`, written out: this loop is the cost of a problem.
                ops, count = ops_a + ops_b, count_a * count_b
                counts[a + b, ops + PLUS] += 2 * count
                counts[a * b, ops + TIMES] += 2 * count
                counts[abs(a - b), ops + MINUS] += count if a != b else 2 * count
                if b and a % b == 0:
                    counts[a // b, ops + DIVIDED] += count
                if a and b % a == 0:
                    counts[b // a, ops + DIVIDED] += count
    return dict(counts)


def derive(numbers: Numbers, value: int, ops: int) -> list[str]:
    """The lines of one expression that uses all of ``numbers`` and has this value and these operations."""
    if len(numbers) == 1:
        return []
    for first, second in splits(numbers):
        for left, right in ((first, second), (second, first)):
            for (a, ops_a), (b, ops_b) in product(expressions(left), expressions(right)):
                symbol = SYMBOLS.get(ops - ops_a - ops_b)
                if symbol and calculate(a, symbol, b) == value:
                    return derive(left, a, ops_a) + derive(right, b, ops_b) + [f"{a} {symbol} {b} = {value}"]
    raise ValueError(f"no expression over {numbers} has the value {value}")


def subsets(numbers: list[int]) -> list[Numbers]:
    """Every choice of two or more of the numbers, sorted; equal numbers are different choices."""
    masks = range(1, 2 ** len(numbers))
    return [subset(tuple(sorted(numbers)), mask) for mask in masks if mask.bit_count() > 1]


def solve(numbers: list[int], target: int) -> dict[str, Any] | None:
    """A best and a lowest-scoring ("simple") solution and their points; None if the target is out of reach."""
    found = [
        (points(ops), len(part), part, ops)
        for part in subsets(numbers)
        for value, ops in expressions(part)
        if value == target
    ]
    if not found:
        return None
    solution: dict[str, Any] = {}
    for name, (earned, _, part, ops) in (("simple", min(found)), ("best", max(found))):
        solution |= {name: "\n".join(derive(part, target, ops)), f"{name}_points": earned}
    return solution


def ranked_targets(numbers: list[int]) -> list[int]:
    """The targets with an 18-point solution, easiest first.

    The rank of a target is Σ points / (number of expressions)², as in the authors' code: a target that many expressions
    reach is easy.  Expressions that differ only in the order of operands count separately there, and here.
    """
    num_expressions: dict[int, int] = defaultdict(int)
    total_points: dict[int, int] = defaultdict(int)
    for part in subsets(numbers):
        for (value, ops), count in expressions(part).items():
            num_expressions[value] += count
            total_points[value] += count * points(ops)
    targets = [value for value, ops in expressions(tuple(sorted(numbers))) if ops == EACH_ONCE]
    return sorted(targets, key=lambda value: (total_points[value] / num_expressions[value] ** 2, value))


# ---- problems


def problems(*, num_problems: int = 1000, difficulty: str = "mixed", problem_seed: int = 0, **_: Any) -> dict[str, Any]:
    """The splits ``test`` and ``fewshot`` as data sets, for lm-eval's ``custom_dataset``.

    lm-eval passes the task's metadata merged with the model's arguments: unknown names are ignored, and the seed is not
    called ``seed``, or an engine's own seed would change the problems.  The first n problems do not depend on
    ``num_problems``.
    """
    from datasets import Dataset

    if difficulty not in (*LEVELS, "mixed"):
        raise ValueError(f"mathador: difficulty must be one of {', '.join(LEVELS)}, mixed; got {difficulty!r}")
    tests = generate_tests(num_problems, difficulty, problem_seed)
    return {"test": Dataset.from_list(tests), "fewshot": Dataset.from_list(generate_shots(problem_seed))}


@cache
def generate_tests(num_problems: int, difficulty: str, problem_seed: int) -> list[dict[str, Any]]:
    """Distinct problems that differ from all few-shot problems; ``mixed`` takes easy, medium and hard in turn."""
    taken = {identify(shot) for shot in generate_shots(problem_seed)}
    return list(islice(draw_problems(difficulty, f"test {difficulty} {problem_seed}", taken), num_problems))


@cache
def generate_shots(problem_seed: int) -> list[dict[str, Any]]:
    """Problems for the prompt, the same at every difficulty; each has a simple solution besides the best."""
    drawn = draw_problems("mixed", f"fewshot {problem_seed}", set())
    return list(islice((shot for shot in drawn if shot["simple_points"] < MAX_POINTS), NUM_SHOTS))


def identify(problem: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*sorted(problem["numbers"]), problem["target"])


def draw_problems(difficulty: str, seed: str, taken: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Endless problems, none of them in ``taken``, which grows."""
    rng = random.Random(seed)
    for level in cycle(LEVELS if difficulty == "mixed" else (difficulty,)):
        problem = draw_problem(rng, level)
        while problem is None or identify(problem) in taken:
            problem = draw_problem(rng, level)
        taken.add(identify(problem))
        yield problem | (solve(problem["numbers"], problem["target"]) or {})


def draw_problem(rng: random.Random, level: str) -> dict[str, Any] | None:
    """A throw of the dice and a target from the level's third of the ranking; None if that third is empty."""
    # Python promises the sequence of random() to every version, and that of no other method.
    numbers = [1 + int(rng.random() * faces) for faces in DICE]
    targets = ranked_targets(numbers)
    third = LEVELS.index(level)
    candidates = targets[len(targets) * third // 3 : len(targets) * (third + 1) // 3]
    if not candidates:
        return None
    return {"numbers": numbers, "target": candidates[int(rng.random() * len(candidates))], "difficulty": level}


# ---- scoring


def last_block(text: str) -> list[tuple[str, str, str, str]]:
    """(a, op, b, c) of the last unbroken run of lines of the form ``a op b = c``; blank lines do not break it."""
    steps: list[tuple[str, str, str, str]] = []
    running = False
    for line in filter(str.strip, text.splitlines()):
        match = LINE.fullmatch(line)
        if match:
            a, symbol, b, c = match.groups()
            steps = [*(steps if running else []), (a, symbol.translate(SPELLINGS), b, c)]
        running = match is not None
    return steps


def score(text: str, numbers: list[int], target: int) -> tuple[int, str | None]:
    """Points of an answer (0, or 6 to 18), and why it has none: the first fault from the top, one of ``FAILURES``.

    Only the last block of lines counts.  Every line must use two numbers that are still there and leaves its result; a
    line that is not needed for the target earns its points all the same, as in the authors' code.
    """
    steps = last_block(text)
    if not steps:
        return 0, "wrong_format"
    left, ops, result = list(numbers), 0, -1
    for a, symbol, b, c in steps:
        if not all(re.fullmatch(r"[0-9]+(\.0+)?", number) for number in (a, b, c)):
            return 0, "illegal_intermediate"
        operand_a, operand_b, result = (int(number.partition(".")[0]) for number in (a, b, c))
        if calculate(operand_a, symbol, operand_b) != result:
            return 0, "wrong_calculation"
        for operand in (operand_a, operand_b):
            if operand not in left:
                return 0, "illegal_number"
            left.remove(operand)
        left.append(result)
        ops += CODES[symbol]
    return (points(ops), None) if result == target else (0, "wrong_result")


def process_results(doc: Mapping[str, Any], results: list[str | None]) -> dict[str, float]:
    """lm-eval's per-document metrics: the share of the points, whether it is solved, and one column per failure.

    A response that is missing (None) has no metrics: it counts as nothing, not as wrong.
    """
    response = results[0]
    if response is None:
        return {}
    earned, failure = score(response, doc["numbers"], doc["target"])
    failures = {name: float(name == failure) for name in FAILURES}
    return {"score": earned / MAX_POINTS, "solved": float(failure is None)} | failures
