"""Mathador: the solver against brute force, the scorer, the generator, and the task as lm-eval sees it."""

import hashlib
import json
from collections import defaultdict
from itertools import permutations, product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.tasks.mathador import mathador

TASKS = Path(__file__).parents[3] / "stages" / "tasks"
POINTS = {"+": 1, "*": 1, "-": 2, "/": 3}
few_examples = settings(max_examples=25, deadline=None)


def rpn_shapes(num_values, depth=0):
    """Reverse Polish patterns over ``num_values`` values: "v" pushes, "o" operates; one per binary tree."""
    if num_values == 0 and depth == 1:
        yield ""
    if num_values:
        yield from ("v" + rest for rest in rpn_shapes(num_values - 1, depth + 1))
    if depth >= 2:
        yield from ("o" + rest for rest in rpn_shapes(num_values, depth - 1))


def evaluate_rpn(shape, values, symbols):
    """The value; None as soon as an intermediate value is negative or no whole number."""
    values, symbols, stack = iter(values), iter(symbols), []
    for token in shape:
        if token == "v":
            stack.append(next(values))
            continue
        b, a, symbol = stack.pop(), stack.pop(), next(symbols)
        if (symbol == "/" and (b == 0 or a % b)) or (symbol == "-" and a < b):
            return None
        stack.append(a + b if symbol == "+" else a - b if symbol == "-" else a * b if symbol == "*" else a // b)
    return stack[0]


def brute_force(numbers):
    """{value: points of every expression with that value} over all ordered choices, shapes and operations."""
    found = defaultdict(list)
    for size in range(2, len(numbers) + 1):
        shapes = list(rpn_shapes(size))
        for symbols in product("+-*/", repeat=size - 1):
            earned = 5 + sum(POINTS[symbol] for symbol in symbols) + (6 if len(set(symbols)) == 4 else 0)
            for values, shape in product(permutations(numbers, size), shapes):
                value = evaluate_rpn(shape, values, symbols)
                if value is not None:
                    found[value].append(earned)
    return found


class TestSolver:
    @few_examples
    @given(st.lists(st.integers(1, 20), min_size=2, max_size=4))
    def test_agrees_with_brute_force_on_every_target(self, numbers):
        expected = brute_force(numbers)
        for target in {*range(30), *expected}:
            solution = mathador.solve(numbers, target)
            if target not in expected:
                assert solution is None
                continue
            assert (solution["simple_points"], solution["best_points"]) == (
                min(expected[target]),
                max(expected[target]),
            )
            for name in ("simple", "best"):
                assert mathador.score(solution[name], numbers, target) == (solution[f"{name}_points"], None)

    def test_ranks_targets_by_number_of_expressions_and_drops_those_without_18_points(self):
        numbers = [2, 6, 5, 11, 7]
        expected = {target: earned for target, earned in brute_force(numbers).items() if max(earned) == 18}
        assert mathador.ranked_targets(numbers) == sorted(
            expected, key=lambda target: (sum(expected[target]) / len(expected[target]) ** 2, target)
        )


@st.composite
def legal_games(draw):
    """Base numbers, the lines of a legal game on them, and the operations used."""
    numbers = draw(st.lists(st.integers(1, 20), min_size=5, max_size=5))
    left, lines, symbols = list(numbers), [], []
    for _ in range(draw(st.integers(1, 4))):
        a, b = (left.pop(draw(st.integers(0, len(left) - 1))) for _ in range(2))
        legal = [("+", a + b), ("*", a * b)]
        legal += [("-", a - b)] * (a >= b) + [("/", a // max(b, 1))] * (b > 0 and a % max(b, 1) == 0)
        symbol, result = draw(st.sampled_from(legal))
        lines.append((a, symbol, b, result))
        symbols.append(symbol)
        left.append(result)
    return numbers, lines, symbols


GOLDEN_DIGEST = (
    "a4a26df842543c81f4383afe46f9e6773e5d55234be5b30b074f7084c92a46a1"  # of the first six problems and two examples
)
SPELLINGS = {"+": "+", "-": "-−–", "*": "*×xX·", "/": "/÷:"}


class TestScoring:
    @few_examples
    @given(legal_games(), st.data())
    def test_a_legal_game_earns_the_points_of_its_operations(self, game, data):
        numbers, lines, symbols = game
        spelled = [
            f"{a} {data.draw(st.sampled_from(SPELLINGS[symbol]))} {b} = {result}" for a, symbol, b, result in lines
        ]
        expected = 5 + sum(POINTS[symbol] for symbol in symbols) + (6 if len(set(symbols)) == 4 else 0)
        text = "Let me see.\n" + "\n".join(spelled) + "\nThat is it."
        assert mathador.score(text, numbers, lines[-1][-1]) == (expected, None)
        assert mathador.score(text, numbers, lines[-1][-1] + 1) == (0, "wrong_result")

    @pytest.mark.parametrize(
        ("text", "outcome"),
        [
            ("3 * 4 = 12\n12 - 2 = 10", (8, None)),
            ("3*4=12\n 12-2 = 10 ", (8, None)),
            ("12 / 2 = 6\n\n6 + 4 = 10", (9, None)),  # a blank line does not end a block
            ("3 * 4 = 12\n12 - 2 = 10\n", (8, None)),
            ("12 / 4 = 3.0\n3 + 3 = 6\n6 + 2 = 8\n8 + 2 = 10", (0, "illegal_number")),  # 2 is there once
            ("Simple:\n12 - 2 = 10\nBest:\n3 * 4 = 12\n12 - 2 = 11", (0, "wrong_calculation")),  # the last block counts
            ("3 * 4 = 12\nso\n12 - 2 = 10", (7, None)),  # the last block alone, and 12 is a base number too
            ("", (0, "wrong_format")),
            ("The answer is 10.", (0, "wrong_format")),
            ("3 * 4 - 2 = 10", (0, "wrong_format")),
            ("1. 12 - 2 = 10", (0, "wrong_format")),
            ("12 - 2", (0, "wrong_format")),
            ("12 - 2 = 11", (0, "wrong_calculation")),
            ("12 / 5 = 2", (0, "wrong_calculation")),  # no rounding
            ("12 / 0 = 0", (0, "wrong_calculation")),
            ("2 - 12 = 10", (0, "wrong_calculation")),
            ("10 * 1 = 10", (0, "illegal_number")),
            ("12 - 2 = 10\n10 + 2 = 12\n12 - 2 = 10", (0, "illegal_number")),  # 2 is there once
            ("2 - 12 = -10", (0, "illegal_intermediate")),
            ("3 / 2 = 1.5\n1.5 * 12 = 18", (0, "illegal_intermediate")),
            ("12 + 2 = 14", (0, "wrong_result")),
            ("9" * 5000 + " + 1 = 2", (0, "wrong_format")),  # a number without end is no number, and no crash
        ],
    )
    def test_names_the_first_fault(self, text, outcome):
        assert mathador.score(text, [3, 4, 2, 12, 3], 10) == outcome

    def test_each_failure_is_a_column_and_a_missing_answer_has_none(self):
        doc = {"numbers": [3, 4, 2, 12, 3], "target": 10}
        metrics = mathador.process_results(doc, ["12 + 2 = 14"])
        assert metrics == {"score": 0.0, "solved": 0.0} | {
            name: float(name == "wrong_result") for name in mathador.FAILURES
        }
        assert mathador.process_results(doc, ["12 - 2 = 10"])["score"] == 7 / 18
        assert mathador.process_results(doc, [None]) == {}


@pytest.mark.dear
class TestProblems:
    @pytest.mark.parametrize("difficulty", ["easy", "medium", "hard", "mixed"])
    def test_every_problem_has_an_18_point_solution_and_says_what_its_solutions_score(self, difficulty):
        splits = mathador.problems(num_problems=45, difficulty=difficulty)
        for problem in [*splits["test"], *splits["fewshot"]]:
            numbers, target = problem["numbers"], problem["target"]
            assert all(1 <= number <= faces for number, faces in zip(numbers, (4, 6, 8, 12, 20), strict=True))
            assert mathador.score(problem["best"], numbers, target) == (18, None)
            assert mathador.score(problem["simple"], numbers, target) == (problem["simple_points"], None)

    def test_levels_are_thirds_of_the_ranking_and_mixed_takes_them_in_turn(self):
        tests = mathador.problems(num_problems=30)["test"]
        assert tests["difficulty"] == ["easy", "medium", "hard"] * 10
        for problem in tests:
            ranking = mathador.ranked_targets(problem["numbers"])
            third = ["easy", "medium", "hard"].index(problem["difficulty"])
            assert third / 3 * len(ranking) - 1 < ranking.index(problem["target"]) < (third + 1) / 3 * len(ranking)

    def test_no_problem_comes_twice_and_none_is_in_the_prompt(self):
        splits = mathador.problems(num_problems=300)
        seen = [(*sorted(p["numbers"]), p["target"]) for split in splits.values() for p in split]
        assert len(set(seen)) == len(seen)

    def test_the_seed_alone_decides(self):
        def numbers(**parameters):
            return mathador.problems(**parameters)["test"]["numbers"]

        assert numbers(num_problems=9) == numbers(num_problems=18)[:9]
        assert numbers(num_problems=9) == numbers(num_problems=9, seed=5, pretrained="model")  # an engine's arguments
        assert numbers(num_problems=9) != numbers(num_problems=9, problem_seed=1)

    def test_problems_are_the_same_on_every_machine(self):
        splits = mathador.problems(num_problems=6)
        text = json.dumps([list(splits["test"]), list(splits["fewshot"])[:2]], sort_keys=True)
        assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN_DIGEST

    def test_an_unknown_difficulty_is_refused(self):
        with pytest.raises(ValueError, match="easy, medium, hard, mixed"):
            mathador.problems(difficulty="harder")


@pytest.fixture(scope="module")
def load():
    """Load a task as a user of lm-eval would."""
    from lm_eval.tasks import TaskManager

    def load(name, **metadata):
        tasks = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
        task = tasks.load([name])["tasks"][name]
        task.set_fewshot_seed(1234)
        return task

    return load


def chat_template(messages, add_generation_prompt=True):
    return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>" * add_generation_prompt


class TestTask:
    @pytest.mark.parametrize(
        ("name", "levels"),
        [("mathador", {"easy", "medium", "hard"}), ("mathador_easy", {"easy"}), ("mathador_hard", {"hard"})],
    )
    def test_is_found_by_name_at_its_difficulty(self, load, name, levels):
        assert set(load(name, num_problems=6).eval_docs["difficulty"]) == levels

    def test_has_1000_problems(self, load):
        assert len(load("mathador").eval_docs) == 1000

    @pytest.mark.parametrize("num_fewshot", [0, 2, 5])
    def test_prompt_has_the_rules_and_the_worked_examples(self, load, num_fewshot):
        task = load("mathador", num_problems=3)
        assert task.config.num_fewshot == 2
        task.set_config("num_fewshot", num_fewshot)
        task.build_all_requests()
        for instance in task.instances:
            prompt, arguments = instance.args
            assert prompt.startswith("Mathador is a number game.")
            assert prompt.count("Target number: ") == num_fewshot + 1
            assert prompt.count("Best solution (18 points):\n") == num_fewshot == prompt.count("Simple solution (")
            numbers = ", ".join(map(str, instance.doc["numbers"]))
            assert prompt.endswith(f"Target number: {instance.doc['target']}\nBase numbers: {numbers}\nAnswer:")
            assert arguments["max_gen_toks"] == 128 and not arguments["do_sample"]

    def test_examples_are_turns_of_a_chat_or_one_message(self, load):
        task = load("mathador", num_problems=3)
        for multiturn, num_turns in ((True, 3), (False, 1)):
            task.build_all_requests(
                apply_chat_template=True, fewshot_as_multiturn=multiturn, chat_template=chat_template
            )
            prompt = task.instances[0].args[0]
            assert prompt.startswith("<system>Mathador is a number game.")
            assert prompt.count("<user>Target number: ") == prompt.count("<assistant>") == num_turns
            assert prompt.count("Best solution (18 points):\n") == 2
            assert prompt.endswith("Answer:<assistant>")

    def test_every_prompt_has_the_same_examples(self, load):
        task = load("mathador", num_problems=6)
        task.build_all_requests()
        assert len({instance.args[0].rpartition("Target number:")[0] for instance in task.instances}) == 1

    def test_the_worked_answer_scores_18_points_through_lm_eval(self, load):
        from lm_eval import evaluate
        from lm_eval.api.model import LM

        class Player(LM):
            """Answers every even problem with its worked answer, and says nothing to the others."""

            def generate_until(self, requests, **_):
                return [task.doc_to_target(r.doc) if r.doc_id % 2 == 0 else "" for r in requests]

            def loglikelihood(self, requests, **_):
                raise NotImplementedError

            loglikelihood_rolling = loglikelihood

        task = load("mathador", num_problems=8)
        results = evaluate(Player(), {"mathador": task}, bootstrap_iters=0)
        measured = results["results"]["mathador"]
        assert measured["score,none"] == measured["solved,none"] == measured["wrong_format,none"] == 0.5
        assert measured["illegal_number,none"] == 0
        assert results["higher_is_better"]["mathador"]["score"] is True
