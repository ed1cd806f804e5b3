"""The generator: deterministic, and right by construction."""

from __future__ import annotations

import random
import re

import pytest

from training.evaluate import generated, score
from training.families import documents, items, numbers
from training.problems import Problem, Question, choose_range
from training.students import students

FAMILIES = (students, items, documents, numbers)


def _answer(question: Question) -> str:
    return "".join(text for text, _ in question.conclusion)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", ["tiny", "short", "full"])
def test_the_same_seed_gives_the_same_problem(family, size: str) -> None:
    """Generation depends on nothing but the random generator that is passed in."""
    assert family(random.Random(3), 6, size, 4) == family(random.Random(3), 6, size, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_title_is_a_legal_step_title(family) -> None:
    """Titles differ, and hold no character that would end them."""
    for seed in range(40):
        problem: Problem = family(random.Random(seed), 9, "full", 2)
        for question in problem.questions:
            titles = [line.title for line in question.lines]
            assert len(set(titles)) == len(titles) == 9
            assert not any(re.search(r"[:#\n]", title) for title in titles)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_conclusion_names_exactly_the_lines_that_say_yes(family) -> None:
    """`none` when no line says yes; a fact asked of each document is listed for each."""
    for seed in range(60):
        for question in family(random.Random(seed), 7, "short", 3).questions:
            bodies = ["".join(text for text, _ in line.body) for line in question.lines]
            if not any(
                body.endswith((", no", f", yes: {line.title}"))
                for body, line in zip(bodies, question.lines, strict=True)
            ):
                continue  # a list of facts
            hits = [line.title for line in question.lines if line.hit]
            assert _answer(question).partition(": ")[2] == (", ".join(hits) or "none")
            for line, body in zip(question.lines, bodies, strict=True):
                assert line.hit == body.endswith(f", yes: {line.title}")


def test_students_verdicts_follow_from_the_records() -> None:
    """The value in each line is that of the record, and the verdict compares it with the bounds."""
    for row in generated(8, 20):
        records = re.findall(r"named (.+?) is \d+ years.*?GPA of (\d+(?:\.\d+)?)\. ", row["prompt"])
        low, high = map(float, re.findall(r"between (\S+) and (\d+(?:\.\d+)?)\?", row["prompt"])[0])
        assert [n for n, v in records if low <= float(v) <= high] == [row["gold_keys"]]


def test_divisibility_is_right() -> None:
    """A number is said to be divisible when it is."""
    for seed in range(40):
        for question in numbers(random.Random(seed), 8, "tiny", 3).questions:
            divisor = int(re.findall(r"divisible by (\d+)", question.preamble)[0])
            for line in question.lines:
                assert line.hit == (int(line.title) % divisor == 0)


def test_ranges_never_touch_a_value() -> None:
    """No value equals a bound, so inclusive and exclusive readings agree."""
    for seed in range(300):
        rng = random.Random(seed)
        values = [rng.randint(100, 500) for _ in range(rng.randint(1, 12))]
        wanted = choose_range(rng, values, 1, 0, 550, "full")
        bounds = [float(b) for b in (wanted.low, wanted.high) if b is not None]
        assert not {round(v / 100, 2) for v in values} & set(bounds)
        assert len(bounds) == 1 or bounds[0] < bounds[1]


def test_the_evaluator_gives_full_marks_to_a_right_answer_and_none_to_a_wrong_one() -> None:
    """Scores are shares of what the records of the prompt say."""
    (row,) = generated(3, 1)
    records = re.findall(r"named (.+?) is \d+ years.*?GPA of (\d+(?:\.\d+)?)\. ", row["prompt"])
    titles = [name for name, _ in records]
    bodies = [
        f" GPA {v}, wanted 1 to 2, " + (f"yes: {n}" if n == row["gold_keys"] else "no") + "\n"
        for n, v in records
    ]
    assert all(all(v) for v in score(row, titles, bodies, f"name: {row['gold_keys']}").values())
    wrong = score(row, titles[:-1], [" GPA 9, no"] * 2, "name: Nobody")
    assert not any(any(v) for k, v in wrong.items())
