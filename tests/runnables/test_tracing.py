"""Stages and branches as child runs: the same tree in every call, with tokens and times."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from langchain_core.callbacks import (
    AsyncCallbackHandler,
    BaseCallbackHandler,
    UsageMetadataCallbackHandler,
)
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langchain_core.tracers.schemas import Run

from langchain_pos import ParallelReasoningLLM, ReasoningResult
from langchain_pos.errors import ParallelReasoningError
from langchain_pos.reasoning.spans import SpanReporter
from tests.support.scripted import STUDENTS, Halt, random_llm, scripted_llm

TREE = [
    ("chain", "ParallelReasoningLLM"),
    ("llm", "plan"),
    ("chain", "expand"),
    ("llm", "branch 0"),
    ("llm", "branch 1"),
    ("llm", "conclude"),
]
CALLS: dict[str, Callable[[ParallelReasoningLLM, Any, Any], Any]] = {
    "invoke": lambda llm, asked, config: llm.invoke(asked, config),
    "stream": lambda llm, asked, config: list(llm.stream(asked, config)),
    "batch": lambda llm, asked, config: llm.batch([asked], config),
    "batch_as_completed": lambda llm, asked, config: list(llm.batch_as_completed([asked], config)),
    "ainvoke": lambda llm, asked, config: asyncio.run(llm.ainvoke(asked, config)),
    "astream": lambda llm, asked, config: asyncio.run(_drain(llm.astream(asked, config))),
    "abatch": lambda llm, asked, config: asyncio.run(llm.abatch([asked], config)),
    "abatch_as_completed": lambda llm, asked, config: asyncio.run(
        _drain(llm.abatch_as_completed([asked], config))
    ),
}


async def _drain(items: Any) -> list[Any]:
    return [item async for item in items]


def runs(run: Run) -> list[Run]:
    """A run and all below it, in the order of their beginning."""
    return [run, *(below for child in run.child_runs for below in runs(child))]


def tree(run: Run) -> list[tuple[str, str]]:
    """What kind of run, and its name."""
    return [(r.run_type, r.name) for r in runs(run)]


def traced(
    call: str, asked: Any = "Who?", rules: Any = STUDENTS, **fields: Any
) -> tuple[Run, ParallelReasoningLLM]:
    """The question's run after a call, which may fail with an error of ours."""
    llm, _ = scripted_llm(rules, **fields)
    collector = RunCollectorCallbackHandler()
    with suppress(ParallelReasoningError):
        CALLS[call](llm, asked, {"callbacks": [collector]})
    (run,) = collector.traced_runs
    return run, llm


def usage(run: Run) -> dict[str, int]:
    """Tokens that a model's run reports."""
    assert run.outputs is not None
    message = run.outputs["generations"][0][0]["message"]["kwargs"]
    assert message["response_metadata"]["model_name"] == "LlamaForCausalLM"
    return dict(message["usage_metadata"])


class TestTree:
    @pytest.mark.parametrize("call", CALLS)
    def test_every_call_gives_the_same_tree(self, call: str) -> None:
        """Stages below the question, branches below stage 2; all of them ended well."""
        run, _ = traced(call)
        assert tree(run) == TREE
        assert all(r.error is None and r.end_time is not None for r in runs(run))
        plan, expand, conclude = run.child_runs
        outputs = [r.outputs["generations"][0][0]["text"] for r in (plan, conclude)]  # type: ignore[index]
        assert outputs == [STUDENTS["Who?\n\nAnswer:\n"], "name: Ben"]
        assert expand.inputs == {"block": 0, "preamble": "Let us see.", "titles": ["Ann", "Ben"]}
        assert [b["text"] for b in expand.outputs["branches"]] == ["GPA 3.1, outside", "GPA 2.4"]  # type: ignore[index]

    @pytest.mark.parametrize("call", CALLS)
    def test_times_are_those_of_the_work(self, call: str) -> None:
        """Stages follow one another; branches overlap, and the shorter one ends first."""
        run, _ = traced(call)
        plan, expand, conclude = run.child_runs
        ann, ben = expand.child_runs
        assert run.start_time <= plan.start_time < plan.end_time <= expand.start_time  # type: ignore[operator]
        assert expand.end_time <= conclude.start_time < conclude.end_time <= run.end_time  # type: ignore[operator]
        assert ann.start_time <= ben.start_time < ben.end_time < ann.end_time  # type: ignore[operator]

    def test_a_run_reads_what_the_model_reads(self) -> None:
        """Prompt, then the answer as far as it goes; of its siblings a branch reads nothing."""
        run, _ = traced("invoke")
        plan, expand, conclude = run.child_runs
        assert plan.inputs["prompts"] == ["Human: Who?"]
        read = expand.child_runs[0].inputs["prompts"][0]
        assert read == "Human: Who?\nAI: Let us see.\n####Ann:"
        assert conclude.inputs["prompts"][0].endswith("####Ben: GPA 2.4\n####%%%%")

    def test_given_steps_have_no_plan(self) -> None:
        """No model is called for it; `conclude=False` has no conclusion either."""
        run, _ = traced("invoke", {"question": "Who?", "steps": ["Ann", "Ben"]})
        assert tree(run) == [TREE[0], *TREE[2:]]
        run, _ = traced("invoke", {"question": "Who?", "steps": ["Ann"]}, conclude=False)
        assert tree(run) == [TREE[0], *TREE[2:4]]

    def test_further_blocks_are_further_runs(self) -> None:
        """Plan and branches once more; a line that opens no block is gone on with."""
        rules = {
            **STUDENTS,
            "####%%%%\n": ["More.\n####Cleo:......\n####Dan:......\n####%%%%", "done"],
            "####Cleo:": " c",
            "####Dan:": " d",
        }
        run, _ = traced("invoke", rules=rules)
        assert [r.name for r in runs(run)[1:]] == [
            *("plan", "expand", "branch 0", "branch 1", "conclude"),
            *("plan", "expand", "branch 0", "branch 1", "conclude"),
        ]
        assert run.child_runs[4].inputs["block"] == 1

    def test_an_ordinary_answer_is_one_run(self) -> None:
        """After a declined plan, or at once."""
        run, _ = traced("invoke", rules={"Answer:\n": "####%%%%"})
        assert [r.name for r in runs(run)[1:]] == ["plan", "conclude"]
        run, _ = traced("invoke", rules={"Answer:\n": "Ben"}, mode="sequential")
        assert [r.name for r in runs(run)[1:]] == ["conclude"]


class TestTokens:
    @pytest.mark.parametrize("steps", [None, ["Ann", "Ben"]])
    @pytest.mark.parametrize("call", CALLS)
    def test_each_token_counts_once(self, call: str, steps: Any) -> None:
        """`UsageMetadataCallbackHandler` has the result's sum, under a name of the model."""
        llm, _ = scripted_llm(STUDENTS)
        counter = UsageMetadataCallbackHandler()
        asked = "Who?" if steps is None else {"question": "Who?", "steps": steps}
        CALLS[call](llm, asked, {"callbacks": [counter]})
        expected = llm.invoke(asked).usage
        assert counter.usage_metadata == {
            "LlamaForCausalLM": {
                "input_tokens": expected.input_tokens,
                "output_tokens": expected.output_tokens,
                "total_tokens": expected.total_tokens,
            }
        }

    def test_the_first_run_counts_the_prompt(self) -> None:
        """The runs after it go on in the same KV cache."""
        run, _ = traced("invoke")
        models = [r for r in runs(run) if r.run_type == "llm"]
        assert [usage(r)["input_tokens"] > 0 for r in models] == [True, False, False, False]
        run, _ = traced("invoke", {"question": "Who?", "steps": ["Ann", "Ben"]})
        models = [r for r in runs(run) if r.run_type == "llm"]
        assert sum(usage(r)["input_tokens"] > 0 for r in models) == 1

    def test_a_failed_first_branch_does_not_swallow_the_prompt(self) -> None:
        """Whoever ends well first counts it; what is lost is the failed run's own tokens."""
        llm, _ = scripted_llm({**STUDENTS, "####Ann:": " x\0"})
        counter = UsageMetadataCallbackHandler()
        asked = {"question": "Who?", "steps": ["Ann", "Ben"]}
        result = llm.invoke(asked, {"callbacks": [counter]})
        (counted,) = counter.usage_metadata.values()
        failed = result.branches[0].usage.output_tokens
        assert counted["input_tokens"] == result.usage.input_tokens
        assert counted["output_tokens"] == result.usage.output_tokens - failed

    def test_random_models_count_right(self) -> None:
        """Retries, drafts, further blocks, ordinary answers: the sum holds."""
        llm = random_llm()
        for seed in range(5):
            collector = RunCollectorCallbackHandler()
            config: Any = {"callbacks": [collector]}
            result = llm.invoke("Which?", config, temperature=1.0, seed=seed)
            models = [r for r in runs(collector.traced_runs[0]) if r.run_type == "llm"]
            assert isinstance(result, ReasoningResult)
            counted = sum(usage(r)["total_tokens"] for r in models if r.error is None)
            lost = sum(b.usage.output_tokens for b in result.branches if b.error is not None)
            if result.error is None:
                assert counted + lost == result.usage.total_tokens


class TestErrors:
    @pytest.mark.parametrize("call", CALLS)
    def test_a_failed_branch_ends_its_run_with_an_error(self, call: str) -> None:
        """The others' runs, and the question's, are whole."""
        run, _ = traced(call, rules={**STUDENTS, "####Ann:": " x\0"})
        assert tree(run) == TREE
        failed = [r.name for r in runs(run) if r.error is not None]
        assert failed == ["branch 0"]
        assert "NaN" in str(runs(run)[3].error)

    @pytest.mark.parametrize("call", CALLS)
    def test_an_error_ends_every_open_run(self, call: str) -> None:
        """NaN while planning: the stage and the question."""
        run, _ = traced(call, rules={"Answer:\n": "Let\0"})
        assert tree(run) == TREE[:2]
        assert all("NaN" in str(r.error) for r in runs(run))

    def test_closing_a_stream_ends_its_runs(self) -> None:
        """Branches under way are cancelled, and say so."""
        llm, _ = scripted_llm(STUDENTS)
        collector = RunCollectorCallbackHandler()
        chunks = llm.stream("Who?", {"callbacks": [collector]})
        for chunk in chunks:
            if chunk.stage == "expand":
                break
        chunks.close()  # type: ignore[attr-defined]
        (run,) = collector.traced_runs
        open_ = {r.name: str(r.error) for r in runs(run)[2:]}
        assert set(open_) == {"expand", "branch 0", "branch 1"}
        assert all("RequestCancelled" in error for error in open_.values())

    async def test_cancelling_a_task_ends_its_runs(self) -> None:
        """With the cancellation as their error."""
        llm, script = scripted_llm(STUDENTS)
        collector = RunCollectorCallbackHandler()
        halt = Halt(script, at=5)
        task = asyncio.create_task(llm.ainvoke("Who?", {"callbacks": [collector]}))
        await asyncio.to_thread(halt.inside.wait)
        task.cancel()
        halt.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        (run,) = collector.traced_runs
        assert tree(run) == TREE[:2]
        assert all("CancelledError" in str(r.error) for r in runs(run))


class TestListeners:
    def test_where_nobody_listens_nothing_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No span is made without a handler."""

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("a span was made")

        monkeypatch.setattr(SpanReporter, "__init__", refuse)
        llm, _ = scripted_llm(STUDENTS)
        for call in CALLS.values():
            call(llm, "Who?", None)
        with pytest.raises(AssertionError, match="a span was made"):
            llm.invoke("Who?", {"callbacks": [BaseCallbackHandler()]})

    def test_nothing_is_printed(self, capfd: pytest.CaptureFixture[str]) -> None:
        """Neither with a tracer nor without one."""
        traced("stream")
        assert capfd.readouterr() == ("", "")

    async def test_async_handlers_are_awaited_in_their_loop(self) -> None:
        """Tokens of every stage reach them, each with its run."""
        loop = asyncio.get_running_loop()
        told: dict[Any, str] = {}

        class Listener(AsyncCallbackHandler):
            async def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
                assert asyncio.get_running_loop() is loop
                told[kwargs["run_id"]] = ""

            async def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
                told[kwargs["run_id"]] += token

        llm, _ = scripted_llm(STUDENTS)
        async for _ in llm.astream("Who?", {"callbacks": [Listener()]}):
            pass
        assert list(told.values())[1:] == ["GPA 3.1, outside", "GPA 2.4", "name: Ben"]

    def test_tags_and_metadata_are_inherited(self) -> None:
        """What the config says holds for the stages, too; the model's name is there."""
        llm, _ = scripted_llm(STUDENTS)
        collector = RunCollectorCallbackHandler()
        config: Any = {"callbacks": [collector], "tags": ["a"], "metadata": {"k": 1}}
        llm.invoke("Who?", config, temperature=0.5, seed=1)
        for run in runs(collector.traced_runs[0])[1:]:
            assert run.tags == ["a"]
            assert run.extra is not None
            assert run.extra["metadata"]["k"] == 1
            if run.run_type == "llm":
                assert run.extra["metadata"]["ls_temperature"] == 0.5
                assert run.extra["invocation_params"]["seed"] == 1
