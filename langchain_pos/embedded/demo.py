"""The question that ships with the package, in the form of the paper's retrieval task."""

from importlib.resources import files

DEMO_ANSWER = "Pascal Vireaux"
"""The one student of the question whose GPA lies in the range."""


def demo_question() -> str:
    """Ten students' resumes and a question about them; names and facts are ours."""
    return files("langchain_pos.embedded").joinpath("demo_question.txt").read_text("utf-8").strip()
