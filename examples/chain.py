"""A chain like any other: prompt | llm | parser, then the same question asked of many."""

from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnableLambda

from langchain_pos import ParallelReasoningLLM, ReasoningResult

prompt = PromptTemplate.from_template(
    "Here are 3 students' resumes:\n\n{resumes}\n\n"
    "Question: Which student has a GPA between {low} and {high}? Please give your final answer "
    '(the student\'s name) in the format of "name: {{answer}}"'
)
RESUMES = "\n".join(
    f"The student named {name} is 2{i} years old, graduated from the University of {town} with a "
    f"GPA of {gpa}. He/She is interested in {hobby} and his/her self-introduction is: {text}"
    for i, (name, town, gpa, hobby, text) in enumerate(
        [
            ("Ann Porter", "Leeds", "3.41", "Chess", "I like to think ahead."),
            ("Ben Castle", "Genoa", "2.15", "Sailing", "The sea has taught me patience."),
            ("Cleo Marsh", "Porto", "4.62", "Music", "I play the cello in an orchestra."),
        ]
    )
)


def answer(result: ReasoningResult) -> str:
    """The conclusion, without its label."""
    return result.conclusion.removeprefix("name:").strip()


chain = prompt | ParallelReasoningLLM() | RunnableLambda(answer)
print(chain.invoke({"resumes": RESUMES, "low": 3.0, "high": 3.5}))

# `batch` decodes all questions in the same forward passes.
questions = [{"resumes": RESUMES, "low": low, "high": low + 0.5} for low in (2.0, 3.0, 4.5)]
for question, name in zip(questions, chain.batch(questions), strict=True):
    print(f"{question['low']} to {question['high']}: {name}")
