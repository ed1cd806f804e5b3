"""Importing the package is cheap, and its public names are all there."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys

import pytest

import langchain_pos

HEAVY = (
    *("torch", "transformers", "xgrammar", "langchain_core", "langgraph", "pydantic"),
    *("typer", "rich", "fastapi", "uvicorn", "starlette"),
)


def loaded_after(code: str) -> set[str]:
    """The heavy modules that a fresh interpreter holds after `code`."""
    report = f"import sys\n{code}\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_import_is_bare() -> None:
    """`import langchain_pos` loads none of the heavy packages."""
    assert loaded_after("import langchain_pos") == set()


def test_version_and_dir_are_bare() -> None:
    """Asking for the version or the names loads none either."""
    assert loaded_after("import langchain_pos as p\np.__version__, dir(p)") == set()


def test_data_and_errors_need_no_torch() -> None:
    """Results can be read where no torch is loaded."""
    code = "from langchain_pos import ReasoningResult, Plan, TokenUsage, ParallelReasoningError"
    assert loaded_after(code).isdisjoint({"torch", "transformers", "xgrammar"})


@pytest.mark.parametrize("name", langchain_pos.__all__)
def test_every_public_name_resolves(name: str) -> None:
    """Each name of `__all__` exists, and `dir` lists it."""
    assert getattr(langchain_pos, name) is not None
    assert name in dir(langchain_pos)


def test_all_is_what_the_modules_hold() -> None:
    """`__all__` and the table of modules name the same things."""
    assert set(langchain_pos.__all__) == {*langchain_pos._HOME, "__version__"}


PACKAGES = "chat_models engine remote results runnables server server.replicas".split()


@pytest.mark.parametrize("name", PACKAGES)
def test_the_public_names_of_a_package_resolve(name: str) -> None:
    """They come from its modules when they are first used; others are no attributes."""
    package = importlib.import_module(f"langchain_pos.{name}")
    assert package.__all__
    for public in package.__all__:
        assert getattr(package, public) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        package.Nonsense  # noqa: B018


def test_unknown_name_is_an_attribute_error() -> None:
    """A name that does not exist is refused in Python's own words."""
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        langchain_pos.Nonsense  # noqa: B018


def test_package_is_typed() -> None:
    """Type checkers find the marker of PEP 561."""
    spec = importlib.util.find_spec("langchain_pos")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    from pathlib import Path

    assert (Path(spec.submodule_search_locations[0]) / "py.typed").is_file()


def test_runnable_and_tool_need_no_torch_before_their_first_question() -> None:
    """They can be made and drawn where no model is loaded; LangGraph is not imported."""
    code = "from langchain_pos import ParallelSubtasksTool\nParallelSubtasksTool().llm.get_graph()"
    assert loaded_after(code).isdisjoint({"torch", "transformers", "xgrammar"})
    assert "langgraph" not in loaded_after(code)


def test_the_engine_needs_torch_and_transformers_alone() -> None:
    """Its benchmarks run on a bare GPU machine; grammars alone need xgrammar."""
    code = (
        "import sys\n"
        "for name in ('xgrammar', 'pydantic', 'langchain_core', 'typer', 'rich', 'tenacity'):\n"
        "    sys.modules[name] = None\n"
        "import langchain_pos.engine.engine\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_imports_no_server() -> None:
    """Nor do the command line and the chat model."""
    code = "import langchain_pos.cli.main\nfrom langchain_pos import ChatParallelReasoning"
    assert loaded_after(code).isdisjoint({"fastapi", "uvicorn", "starlette"})
