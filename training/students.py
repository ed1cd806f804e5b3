"""Students and their GPAs, in the paper's wording and in many others."""

from __future__ import annotations

import random

from training import words
from training.names import invented_word, people, split_list
from training.problems import (
    Problem,
    Question,
    Range,
    ask_format,
    check_line,
    choose_range,
    conclude,
    write_number,
)

_UNIVERSITIES = (
    "University of {place}",
    "{place} University",
    "{place} State University",
    "{place} Institute of Technology",
    "{place} College",
    "{place} College of {field}",
    "Technical University of {place}",
    "{name} University of {field}",
    "National University of {place}",
    "{name} College {place}",
    "{name} and {name2} College",
    "{name} University",
    "University of {field} {place}",
    "{initials}",
    "{initials} {place}",
    "{place} School of {field}",
    "{name}'s College {place}",
    "University of {place} {place2}",
    "Royal Academy of {field}",
    "Universidad de {place}",
)

_INTRODUCTIONS = (
    "{Role} who loves {field} and {verb}ing {noun}.",
    "{Adj} {role} with a passion for {field} and {field2}.",
    "I am {adj} about {field} and hope to {verb} {noun} through {field2}.",
    "{Field} {role}, {adj} and {adj2}, looking for {noun}.",
    "My {adj} {noun} {verb} the {noun2} of {field}.",
    "I aspire to {verb} {field} while {verb2}ing {adj} {noun}.",
    "A {adj} {role} dedicated to {field}, {field2}, and {noun}.",
    "With a love for {field}, I {verb} {noun} around the world.",
    "{Field} and {field2} fuel my {adj} {noun}.",
    "I {verb} {noun} and {verb2} {noun2} in my free time.",
    "{Adj} {role}. {Adj2} {role2}. I {verb} {noun}.",
    "Combining {field} and {field2} to {verb} {adj} {noun}.",
    "I'm a {role} who believes that {field} can {verb} {noun}.",
    "Since childhood I have wanted to {verb} {adj} {noun} with {field}!",
    "{Field} is my life; I {verb} {noun}, {noun2} and {adj} people.",
    "Exploring the {noun} between {field} and {field2}.",
    "{Rare} {rare2} {rare3}, {rare4} and {adj} {rare5}.",
    "As a {role} of {field}, I {verb} {rare} {noun} for {rare2}.",
)

_PAPER = (
    "The student named {name} is {age} years old, graduated from {university} with a GPA of "
    "{gpa}. He/She is interested in {interests} and his/her self-introduction is: {introduction}"
)
_FORMS = (
    _PAPER,
    "{name} is {age} years old and studied at {university}. GPA: {gpa}. "
    "Interests: {interests}. {introduction}",
    "Name: {name}. Age: {age}. University: {university}. GPA: {gpa}. Interests: {interests}.",
    "{name}, {age}, {university}, GPA {gpa}, likes {interests}.",
    "The student called {name} left {university} at {age} with a GPA of {gpa} and enjoys "
    "{interests}. {introduction}",
    "{name} has a GPA of {gpa}, is {age} years old and went to {university}. {introduction}",
    "Student: {name} | GPA: {gpa} | Age: {age} | {university} | {interests}",
    "- {name} ({age}), {university}, GPA {gpa}: {introduction}",
)
_SHORT_PAPER = (
    "The student named {name} is {age} years old, graduated from {university} with a GPA of {gpa}.",
    "The student named {name} is {age} years old, graduated from {university} with a GPA of "
    "{gpa}. He/She is interested in {interests}.",
)
_SHORT_FORMS = (
    *_SHORT_PAPER,
    "{name} is {age} years old and has a GPA of {gpa}.",
    "{name}, GPA {gpa}, {university}.",
    "Name: {name}. GPA: {gpa}. Age: {age}.",
    "{name} has a GPA of {gpa}.",
    "{name} ({age}) left {university} with a GPA of {gpa}.",
)
_HEADS = (
    "Here are {n} students' resumes:\n\n",
    "Here are {n} students' resumes:\n\n",
    "Here are the resumes of {n} students:\n\n",
    "Below are {n} students.\n\n",
    "{n} students applied:\n",
    "Students:\n",
    "",
)


def _rare(rng: random.Random) -> str:
    word = invented_word(rng)
    return word if rng.random() < 0.3 else word.lower()


def university(rng: random.Random) -> str:
    """Return the name of a university, real or not."""
    place = [
        rng.choice(words.PLACES) if rng.random() < 0.5 else invented_word(rng) for _ in range(2)
    ]
    return rng.choice(_UNIVERSITIES).format(
        place=place[0],
        place2=place[1],
        name=invented_word(rng),
        name2=invented_word(rng),
        field=rng.choice(words.FIELDS).capitalize(),
        initials="".join(rng.choices("ABCDEFGHIKLMNOPRSTUVW", k=rng.randint(2, 4))),
    )


def introduction(rng: random.Random, held_out: bool) -> str:
    """Return a student's self-introduction of a sentence or two."""

    def word(group: list[str]) -> str:
        if rng.random() < 0.08:
            return _rare(rng)
        return rng.choice(split_list(group, held_out))

    slots = {}
    for key, group in (
        ("adj", words.ADJECTIVES),
        ("role", words.ROLES),
        ("verb", words.VERBS),
        ("noun", words.NOUNS),
        ("field", words.FIELDS),
    ):
        slots[key], slots[f"{key}2"] = word(group), word(group)
        slots[key.capitalize()] = word(group).capitalize()
        slots[f"{key.capitalize()}2"] = word(group).capitalize()
    for index in ("", "2", "3", "4", "5"):
        slots[f"rare{index}"] = _rare(rng)
    slots["Rare"] = _rare(rng).capitalize()
    text = rng.choice(_INTRODUCTIONS).format(**slots)
    if rng.random() < 0.1:
        text += (
            f" {text[0]}{text[1:].lower()}" if rng.random() < 0.3 else f" I {word(words.VERBS)}."
        )
    return text


def _interests(rng: random.Random, held_out: bool) -> str:
    style = rng.random()
    chosen = []
    for _ in range(rng.randint(1, 4)):
        topic = rng.choice(split_list(words.FIELDS, held_out))
        if rng.random() < 0.25:
            topic = f"{rng.choice(words.ADJECTIVES)} {topic}"
        if rng.random() < 0.05:
            topic = _rare(rng)
        chosen.append(topic.title() if style < 0.7 else topic)
    return ", ".join(chosen)


def _question(rng: random.Random, wanted: Range, hits: int, what: str) -> tuple[str, str, str]:
    """Return question text, preamble and the key of the final answer."""
    if wanted.low is None:
        condition = rng.choice((f"below {wanted.high}", f"under {wanted.high}"))
        condition = rng.choice((condition, f"less than {wanted.high}", f"lower than {wanted.high}"))
    elif wanted.high is None:
        condition = rng.choice((f"above {wanted.low}", f"over {wanted.low}"))
        condition = rng.choice((condition, f"more than {wanted.low}", f"higher than {wanted.low}"))
    else:
        condition = f"between {wanted.low} and {wanted.high}"
        if rng.random() < 0.1:
            condition = f"from {wanted.low} to {wanted.high}"
    preamble = f"I check the {what} of each student, wanted {wanted.text}."
    if hits == 1 and rng.random() < 0.75 and what == "GPA" and condition.startswith("between"):
        text = (
            f"\n\nQuestion: Which student has a GPA {condition}? Please give your final answer "
            '(the student\'s name) in the format of "name: {answer}"'
        )
        return text, preamble, "name"
    several = hits != 1 or rng.random() < 0.3
    noun = "GPA" if what == "GPA" else "age"
    if several:
        text = rng.choice(
            (
                f"Which students have {'a GPA' if what == 'GPA' else 'an age'} {condition}?",
                f"Who has {'a GPA' if what == 'GPA' else 'an age'} {condition}?",
                f"List the students whose {noun} is {condition}.",
                f"Find all students with {'a GPA' if what == 'GPA' else 'an age'} {condition}.",
            )
        )
    else:
        text = rng.choice(
            (
                f"Which student has {'a GPA' if what == 'GPA' else 'an age'} {condition}?",
                f"Whose {noun} is {condition}?",
                f"Find the student with {'a GPA' if what == 'GPA' else 'an age'} {condition}.",
                f"Which of the students has {'a GPA' if what == 'GPA' else 'an age'} {condition}?",
            )
        )
    lead = rng.choice(("\n\nQuestion: ", "\n\nQuestion: ", "\n\n", "\n"))
    if rng.random() < 0.25:
        return lead + text, preamble, "name"
    key = rng.choice(("name", "name", "names", "answer", "student"))
    noun = "students' names" if several else "student's name"
    return lead + text + ask_format(rng, key, noun), preamble, key


def students(
    rng: random.Random, count: int, size: str, questions: int, held_out: bool = False
) -> Problem:
    """Return `count` students and some questions; `size` is "tiny", "short" or "full"."""
    names = people(rng, count, held_out)
    scale = rng.choice(((100, 500), (100, 500), (150, 470), (0, 400), (200, 400), (0, 1000)))
    style = "short" if rng.random() < 0.85 else "full"
    ages = [rng.randint(17, 45) for _ in names]
    if rng.random() < 0.25:  # crowded values: many near misses
        centre = rng.randint(scale[0] + 50, scale[1] - 50)
        gpas = [min(scale[1], max(scale[0], centre + rng.randint(-50, 50))) for _ in names]
    else:
        gpas = [rng.randint(*scale) for _ in names]
    if rng.random() < 0.2:
        gpas = [g // 10 * 10 for g in gpas]
    forms = {
        "tiny": _SHORT_FORMS[2:] if rng.random() < 0.4 else _SHORT_PAPER[:1],
        "short": _SHORT_FORMS if rng.random() < 0.4 else _SHORT_PAPER,
        "full": _FORMS if rng.random() < 0.35 else (_PAPER,),
    }[size]
    form = rng.choice(forms)
    records = [
        form.format(
            name=name,
            age=age,
            gpa=write_number(gpa, style),
            university=university(rng),
            interests=_interests(rng, held_out),
            introduction=introduction(rng, held_out),
        )
        for name, age, gpa in zip(names, ages, gpas, strict=True)
    ]
    records = [r + "\n" for r in records[:-1]] + records[-1:]
    asked = []
    for _ in range(questions):
        if "{age}" in form and rng.random() < 0.07:
            wanted = choose_range(rng, [a * 100 for a in ages], 100, 1500, 6000, "whole")
            written, what, margin = [str(a) for a in ages], "age", 2.0
        else:
            wanted = choose_range(rng, gpas, 1, 0, scale[1] + 50, style)
            written, what, margin = [write_number(g, style) for g in gpas], "GPA", 0.15
        lines = tuple(
            check_line(name, what, value, wanted, margin)
            for name, value in zip(names, written, strict=True)
        )
        text, preamble, key = _question(rng, wanted, sum(line.hit for line in lines), what)
        asked.append(Question(text, preamble, lines, conclude(key, lines)))
    return Problem("students", rng.choice(_HEADS).format(n=count), tuple(records), tuple(asked))


def paper_problem(rng: random.Random, count: int) -> tuple[Problem, str]:
    """Return held-out students with one question in exactly the paper's form, and the answer."""
    while True:
        problem = students(rng, count, "full", 8, held_out=True)
        if (
            not problem.records[0].startswith("The student named")
            or "He/She" not in problem.records[0]
        ):
            continue
        for question in problem.questions:
            hits = [line.title for line in question.lines if line.hit]
            if len(hits) == 1 and question.text.startswith(
                "\n\nQuestion: Which student has a GPA between"
            ):
                head = f"Here are {count} students' resumes:\n\n"
                text = question.text.partition("?")[0] + (
                    "? Please give your final answer (the student's name) in the format of "
                    '"name: {answer}"'
                )
                asked = Question(
                    text, question.preamble, question.lines, (("name: ", 1.0), (hits[0], 1.0))
                )
                return Problem("students", head, problem.records, (asked,)), hits[0]
