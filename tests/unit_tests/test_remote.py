"""Questions over a server: the three stages, streams, batches, callbacks, cancellation."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import add
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from pydantic import BaseModel, ValidationError
from transformers import AutoTokenizer

from langchain_pos import (
    ChatParallelReasoning,
    OpenAICompletionsEngine,
    ParallelReasoningLLM,
    ReasoningResult,
    embedded_model_path,
    read_documents_chain,
)
from langchain_pos.chat_prompt import encode_prompt
from langchain_pos.errors import (
    InvalidRequestError,
    ModelLoadError,
    PlanFormatError,
    RequestCancelled,
)
from langchain_pos.grammar import skeleton_grammar
from langchain_pos.prompts import load_prompts
from langchain_pos.schema import TokenUsage
from langchain_pos.server import make_server
from tests.unit_tests.completions_server import MODEL, Reply, Server, pieces, serving
from tests.unit_tests.models import BARE, SMALL, STUDENTS, scripted_llm

SHIPPED = str(embedded_model_path())
ASKED = "Question: Who?\n\nAnswer:\n"
OUTLINE = "Let us see.\n####Ann:......\n####Ben:......\n####%%%%"


@pytest.fixture
def server() -> Iterator[Server]:
    """The question "Who?" answered in two branches."""
    with serving(dict(STUDENTS)) as running:
        yield running


def told(result: ReasoningResult) -> dict[str, Any]:
    """What a result says, without what it has cost."""
    data = result.model_dump(
        include={"blocks", "conclusion", "mode", "finish_reason", "fallback_reason", "error"}
    )
    for block in data["blocks"]:
        for branch in block["branches"]:
            del branch["started"], branch["ended"], branch["usage"]
    return data


class TestStages:
    def test_the_answer_is_that_of_a_local_model(self, server: Server) -> None:
        """The same script in this process and behind a server: the same result."""
        local, _ = scripted_llm(STUDENTS)
        assert told(server.llm().invoke("Who?")) == told(local.invoke("Who?"))

    def test_every_stage_goes_on_from_the_text_that_a_local_model_sees(
        self, server: Server
    ) -> None:
        """Prompt, preamble and opening; prompt, preamble and joined branches."""
        server.llm().invoke("Who?")
        plan, *branches, conclusion = server.prompts
        assert plan == ASKED
        assert sorted(branches) == [f"{ASKED}Let us see.\n####{n}:" for n in ("Ann", "Ben")]
        joined = "####Ann: GPA 3.1, outside\n####Ben: GPA 2.4\n####%%%%\n"
        assert conclusion == f"{ASKED}Let us see.\n{joined}"

    def test_usage_is_what_the_server_tells(self, server: Server) -> None:
        """Prompts of all requests and all that was written; cached tokens apart."""
        result = server.llm().invoke("Who?")
        read = sum(len(pieces(prompt)) for prompt in server.prompts)
        outline = OUTLINE.removesuffix("####%%%%")  # the server has cut its stop text off
        written = [outline, " GPA 3.1, outside", " GPA 2.4", "name: Ben"]
        assert result.usage == TokenUsage(read, sum(len(pieces(text)) for text in written))
        assert result.cached_tokens == len(server.asked) == 4
        ann = result.branches[0]
        assert ann.usage == TokenUsage(len(pieces(f"{ASKED}Let us see.\n####Ann:")), 4)
        assert result.forward_passes.total == 0
        assert result.model_name == MODEL
        assert result.timings.total > 0

    def test_a_server_without_usage_is_counted_by_chunks(self, server: Server) -> None:
        """What was written, at least, is known."""
        server.rules["####Ann:"] = Reply(" GPA 3.1", usage=False)
        result = server.llm().invoke("Who?")
        assert result.branches[0].usage == TokenUsage(0, 2)

    def test_given_steps_skip_stage_one(self, server: Server) -> None:
        """Their instructions and settings go with their own branch."""
        server.rules["Say it.\n####Cleo:"] = " GPA 9, and so on"
        step = {"title": "Cleo", "prompt": "Say it.", "max_tokens": 2, "stop": ["xyz"], "seed": 3}
        result = server.llm(conclude=False).invoke(
            {"question": "Who?", "steps": ["Ann", {**step, "temperature": 0.5}]}
        )
        assert [b.text for b in result.branches] == ["GPA 3.1, outside", "GPA 9,"]
        assert [b.finish_reason for b in result.branches] == ["stop", "length"]
        assert not result.concluded
        cleo = server.asked[1]
        assert (cleo["temperature"], cleo["seed"], cleo["max_tokens"]) == (0.5, 3, 2)
        assert cleo["stop"] == ["####", "xyz"]

    def test_a_model_may_decline(self, server: Server) -> None:
        """The terminator alone: answered in the ordinary way, with the reason."""
        server.rules[ASKED] = [Reply("####%%%%"), Reply("Nobody.")]
        result = server.llm().invoke("Who?")
        assert (result.mode, result.conclusion) == ("sequential", "Nobody.")
        assert "declined" in str(result.fallback_reason)

    def test_sequential_mode_asks_once(self, server: Server) -> None:
        """One prompt, one answer."""
        server.rules[ASKED] = "Ben, I think."
        result = server.llm(mode="sequential").invoke("Who?")
        assert result.conclusion == "Ben, I think."
        assert len(server.asked) == 1

    def test_a_further_block(self, server: Server) -> None:
        """A step in the conclusion opens one, as with a local model."""
        rules = {
            **STUDENTS,
            "GPA 2.4\n####%%%%\n": "First.\n####Cem:......\n####Dan:......\n####%%%% and so on",
            "####Cem:......\n####": "Dan:......\n####%%%%",
            "First.\n####Cem:": " GPA 1",
            "First.\n####Dan:": " GPA 2",
            "GPA 2\n####%%%%\n": "Cem and Ben.",
        }
        server.rules.update(rules)
        result = server.llm().invoke("Who?")
        assert [block.plan.titles for block in result.blocks] == [("Ann", "Ben"), ("Cem", "Dan")]
        assert result.blocks[1].plan.preamble == "First."
        assert result.conclusion == "Cem and Ben."
        assert result.text == reduce(add, list(server.llm().stream("Who?"))).result().text

    def test_a_step_that_opens_no_block_is_text(self, server: Server) -> None:
        """The conclusion goes on behind it."""
        server.rules["GPA 2.4\n####%%%%\n"] = "First.\n####Cem:...... so"
        server.rules["####Cem:......\n####"] = "%%%%"
        server.rules["First.\n####Cem:...."] = " it is Ben."
        result = server.llm().invoke("Who?")
        assert len(result.blocks) == 1
        assert result.conclusion == "First.\n####Cem:.... it is Ben."

    def test_titles_may_be_seen(self, server: Server) -> None:
        """`visibility="titles"` puts the outline before every branch."""
        result = server.llm(visibility="titles").invoke("Who?")
        assert len(result.branches) == 2
        outline = "####Ann:......\n####Ben:......\n####%%%%\n"
        assert f"{ASKED}Let us see.\n{outline}####Ben:" in server.prompts


class TestPlans:
    def test_a_malformed_plan_is_told_and_tried_again(self, server: Server) -> None:
        """The second prompt names what was wrong, and nothing else changes."""
        server.rules[ASKED] = "I would rather talk."
        told = "Question: Who? (the text has no steps; a step is a line of its own, "
        told += "`####title:......`)\n\nAnswer:\n"
        server.rules[told] = OUTLINE
        result = server.llm().invoke("Who?")
        assert result.plan_attempts == 2
        assert result.conclusion == "name: Ben"
        assert [body["temperature"] for body in server.asked[:2]] == [0, 0]

    def test_then_it_is_sampled_with_a_new_seed(self, server: Server) -> None:
        """From the third attempt on, or where the prompt stays the same."""
        server.rules = {"Answer:\n": "I would rather talk."}
        result = server.llm(max_plan_attempts=3).invoke("Who?")
        assert "no valid plan" in str(result.fallback_reason)
        plans = server.asked[:3]
        assert [body["temperature"] for body in plans] == [0, 0, 0.7]
        assert len({body["seed"] for body in plans}) == 3

    def test_on_plan_failure_raise(self, server: Server) -> None:
        """The text that the model wrote is in the error."""
        server.rules = {"Answer:\n": "I would rather talk."}
        with pytest.raises(PlanFormatError) as caught:
            server.llm(on_plan_failure="raise", max_plan_attempts=1).invoke("Who?")
        assert "rather talk" in caught.value.text

    @pytest.mark.parametrize("how", [{}, {"told_stop": True}, {"keep_stop": True}])
    def test_the_terminator_is_seen_however_the_server_treats_it(
        self, server: Server, how: dict[str, Any]
    ) -> None:
        """Cut off in silence, cut off and told, or left in the text."""
        server.rules[ASKED] = Reply(OUTLINE + " and more", **how)
        result = server.llm().invoke("Who?")
        assert result.plan is not None
        assert result.plan.titles == ("Ann", "Ben")
        text = "".join(c.delta for c in server.llm().stream("Who?") if c.stage == "plan")
        assert text == OUTLINE

    def test_decorated_skeletons_are_read(self, server: Server) -> None:
        """As free models write them; the branches get the canonical openings."""
        server.rules[ASKED] = "Steps\n1. Ann: ...\n2. Ben: ...\n####%%%%"
        server.rules["Steps\n####Ann:"], server.rules["Steps\n####Ben:"] = "1", "2"
        result = server.llm().invoke("Who?")
        assert [b.text for b in result.branches] == ["1", "2"]

    def test_a_skeleton_is_closed_where_its_budget_ends(self, server: Server) -> None:
        """As a local one is, once two steps are there."""
        server.rules[ASKED] = OUTLINE.replace("####%%%%", "####Ben") + "x" * 2000
        result = server.llm().invoke("Who?")
        assert result.plan is not None
        assert result.plan.titles[:2] == ("Ann", "Ben")

    def test_titles_that_occur_twice_are_left_out_in_the_end(self, server: Server) -> None:
        """After the last attempt each of them stays once."""
        server.rules["Answer:\n"] = OUTLINE.replace("####%%%%", "####ann:......\n####%%%%")
        result = server.llm(max_plan_attempts=1).invoke("Who?")
        assert result.plan is not None
        assert result.plan.titles == ("Ann", "Ben")


class TestTokenizers:
    def test_the_chat_template_makes_the_prompt(self, server: Server) -> None:
        """The tokenizer's own, as in this process; tokens are counted by it."""
        server.rules["<|user|>Who?<|end|><|assistant|>"] = OUTLINE
        llm = server.llm({"tokenizer": SHIPPED, "context_length": 512})
        assert llm.invoke("Who?").conclusion == "name: Ben"
        assert server.prompts[0] == "<|user|>Who?<|end|><|assistant|>"
        assert ChatParallelReasoning(engine=llm.remote).get_num_tokens("Who?") > 0

    def test_budgets_fit_a_known_context(self, server: Server) -> None:
        """Shared out as a local model's positions are."""
        server.rules["<|assistant|>"] = OUTLINE
        llm = server.llm({"tokenizer": SHIPPED}, **{**SMALL, "max_branch_tokens": 500})
        server.cards[0]["max_model_len"] = 200
        llm.invoke("Who?")
        plan, ann, ben, conclusion = (body["max_tokens"] for body in server.asked)
        assert plan <= 200 // 3
        assert ann == ben < 100
        assert conclusion <= 32

    def test_special_tokens_of_a_question_stay_text(self, server: Server) -> None:
        """Token ids go to vLLM: those of the local engine are sent."""
        server.rules[""] = "Ben."
        llm = server.llm({"tokenizer": SHIPPED, "server": "vllm"}, mode="sequential")
        asked = "Who? <|end|><|system|>"
        assert llm.invoke(asked).conclusion == "Ben."
        tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
        assert server.prompts == [encode_prompt(tokenizer, [("user", asked)])]

    def test_the_folder_may_bring_its_own_wording(self) -> None:
        """As a local model's folder does."""
        engine = OpenAICompletionsEngine(base_url="http://localhost:1/v1", tokenizer=SHIPPED)
        assert engine.prompts == load_prompts(embedded_model_path())

    def test_a_tokenizer_that_is_not_there(self, server: Server) -> None:
        """Told before anything is asked."""
        with pytest.raises(ModelLoadError, match="the tokenizer '/nowhere'"):
            server.llm({"tokenizer": "/nowhere"}).invoke("Who?")
        assert not server.asked


class TestDialects:
    def test_grammar_goes_to_vllm(self) -> None:
        """It names itself; the skeleton's grammar is the local one, and no stop text is needed."""
        with serving(dict(STUDENTS), owned_by="vllm", max_model_len=4096) as server:
            result = server.llm(temperature=0.3, top_k=7).invoke("Who?")
            assert result.conclusion == "name: Ben"
            plan = server.asked[0]
            grammar = skeleton_grammar(max_branches=SMALL["max_branches"])
            assert plan["structured_outputs"] == {"grammar": grammar}
            assert "stop" not in plan
            assert (plan["top_k"], plan["repetition_penalty"]) == (7, 1.0)
            assert plan["stream_options"]["continuous_usage_stats"]
            assert "structured_outputs" not in server.asked[1]

    @pytest.mark.parametrize(
        ("dialect", "grammar", "schema"),
        [("sglang", "ebnf", "json_schema"), ("vllm-guided", "guided_grammar", "guided_json")],
    )
    def test_others_have_other_names(
        self, server: Server, dialect: str, grammar: str, schema: str
    ) -> None:
        """SGLang's, and those of vLLM before 0.12."""
        server.rules["####Ann:"] = server.rules["####Ben:"] = '{"gpa": 3}'
        llm = server.llm({"server": dialect}, branch_schema=Gpa)
        assert [b.parsed for b in llm.invoke("Who?").branches] == [Gpa(gpa=3), Gpa(gpa=3)]
        assert "root ::=" in server.asked[0][grammar]
        assert "gpa" in str(server.asked[1][schema])

    def test_sglang_names_itself(self) -> None:
        """By `owned_by`, too."""
        with serving(dict(STUDENTS), owned_by="sglang") as server:
            server.llm().invoke("Who?")
            assert "ebnf" in server.asked[0]

    def test_json_is_tried_again_where_nothing_holds_the_server_to_it(self, server: Server) -> None:
        """With another seed, warmer; only what is kept is told."""
        server.rules["####Ann:"] = [Reply("no JSON"), Reply('{"gpa": 3}')]
        server.rules["####Ben:"] = "never JSON"
        whole = reduce(add, list(server.llm(branch_schema=Gpa).stream("Who?"))).result()
        ann, ben = whole.branches
        assert (ann.parsed, ann.text, ann.error) == (Gpa(gpa=3), '{"gpa": 3}', None)
        assert (ben.finish_reason, ben.text) == ("error", "never JSON")
        assert "no valid Gpa" in str(ben.error)
        tries = [body for body in server.asked if body["prompt"].endswith("Ann:")]
        assert [body["temperature"] for body in tries] == [0, 0.7]
        assert len({body["seed"] for body in tries}) == 2

    def test_what_a_plain_server_does_not_know_is_refused(self, server: Server) -> None:
        """Rather than dropped in silence."""
        with pytest.raises(InvalidRequestError, match="top_k"):
            server.llm(top_k=3).invoke("Who?")
        assert not server.asked

    def test_extra_body_goes_along(self, server: Server) -> None:
        """In the server's own words, with every completion."""
        server.llm({"extra_body": {"mirostat": 2}}).invoke("Who?")
        assert all(body["mirostat"] == 2 for body in server.asked)


class Gpa(BaseModel):
    """What a branch finds."""

    gpa: int


class TestLangChain:
    def test_a_stream_adds_up_to_invoke(self, server: Server) -> None:
        """The chunks of all stages."""
        llm = server.llm()
        chunks = list(llm.stream("Who?"))
        assert told(reduce(add, chunks).result()) == told(llm.invoke("Who?"))
        assert {chunk.branch for chunk in chunks if chunk.stage == "expand"} == {0, 1}
        assert "".join(c.delta for c in chunks if c.branch == 1) == "GPA 2.4"

    async def test_async_is_the_same(self, server: Server) -> None:
        """`ainvoke`, `astream`, `abatch`, on whatever loop."""
        llm = server.llm()
        expected = told(await asyncio.to_thread(llm.invoke, "Who?"))
        assert told(await llm.ainvoke("Who?")) == expected
        chunks = [chunk async for chunk in llm.astream("Who?")]
        assert told(reduce(add, chunks).result()) == expected
        assert [told(r) for r in await llm.abatch(["Who?", "Who?"])] == [expected] * 2

    def test_one_runnable_outlives_event_loops(self, server: Server) -> None:
        """The connections belong to no caller's loop."""
        llm = server.llm()
        answers = [asyncio.run(llm.ainvoke("Who?")).conclusion for _ in range(2)]
        assert answers == ["name: Ben"] * 2

    def test_batches(self, server: Server) -> None:
        """Together, each with its own error."""
        llm = server.llm()
        found = llm.batch(["Who?", " ", "Who?"], return_exceptions=True)
        assert [type(each).__name__ for each in found] == [
            "ReasoningResult",
            "InvalidRequestError",
            "ReasoningResult",
        ]
        assert {i for i, _ in llm.batch_as_completed(["Who?", "Who?"])} == {0, 1}

    def test_callbacks_hear_of_stages_and_branches(self, server: Server) -> None:
        """A child run for each, and their tokens add up to the result's."""
        heard = Heard()
        result = server.llm().invoke("Who?", {"callbacks": [heard]})
        assert sorted(heard.models) == ["branch 0", "branch 1", "conclude", "plan"]
        assert heard.usage == result.usage
        assert heard.events.count("parallel_reasoning_branch_end") == 2

    def test_it_can_be_pickled_and_copied(self, server: Server) -> None:
        """Each process has its own connections."""
        llm = pickle.loads(pickle.dumps(server.llm()))
        assert llm.invoke("Who?").conclusion == "name: Ben"
        assert llm.model_copy(deep=True).invoke("Who?").conclusion == "name: Ben"

    def test_chains_of_ours_run_on_it(self, server: Server) -> None:
        """Documents are read in a branch each."""
        server.rules["####Document 1:"] = server.rules["####Document 2:"] = " a deer"
        server.rules["####%%%%\n"] = "Document 2"
        from langchain_core.documents import Document
        from langchain_core.runnables import RunnableLambda

        found = RunnableLambda(lambda _: [Document("a"), Document("b")])
        answer = read_documents_chain(found, server.llm()).invoke("Which?")
        assert [reading.cited for reading in answer["readings"]] == [False, True]


class Heard(BaseCallbackHandler):
    """Collects what callbacks are told."""

    def __init__(self) -> None:
        self.models: list[str] = []
        self.events: list[str] = []
        self.usage = TokenUsage()

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.models.append(kwargs["name"])

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        usage = response.generations[0][0].message.usage_metadata
        self.usage += TokenUsage(usage["input_tokens"], usage["output_tokens"])

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        self.events.append(name)


class TestChat:
    def test_plain_answers(self, server: Server) -> None:
        """Branches are reasoning, the conclusion is the text."""
        chat = ChatParallelReasoning(engine=server.engine(), prompts=BARE, **SMALL)
        message = chat.invoke("Who?")
        assert message.text == "name: Ben"
        assert message.response_metadata["mode"] == "parallel"
        streamed = reduce(add, list(chat.stream("Who?")))
        assert streamed.text == "name: Ben"
        assert not chat.profile["tool_calling"]

    def test_anything_else_is_refused(self, server: Server) -> None:
        """Tools, schemas, log-probabilities: with what to do instead."""
        chat = ChatParallelReasoning(engine=server.engine(), prompts=BARE, **SMALL)
        with pytest.raises(InvalidRequestError, match="ChatOpenAI"):
            chat.with_structured_output(Gpa).invoke("Who?")
        with pytest.raises(InvalidRequestError, match="logprobs"):
            chat.invoke("Who?", logprobs=True)
        with pytest.raises(InvalidRequestError, match="tokenizer="):
            chat.get_num_tokens("Who?")
        assert not server.asked

    def test_it_is_not_served_again(self, server: Server) -> None:
        """A server in front of a server has no slots to tell of."""
        chat = ChatParallelReasoning(engine=server.engine())
        with pytest.raises(InvalidRequestError, match="is a server itself"):
            make_server(chat)


class TestBounds:
    def test_no_more_requests_than_the_engine_allows(self, server: Server) -> None:
        """Over all questions together; and as many as it allows are used."""
        titles = [f"t{n}" for n in range(8)]
        server.rules["".join(["####", "%%%%", "\n"])] = "x"
        server.rules.update({f"####{title}:": " " + "word " * 20 for title in titles})
        llm = server.llm({"max_concurrency": 3})
        llm.batch([{"question": "Who?", "steps": titles}] * 2)
        assert server.most == 3

    def test_no_more_branches_than_the_settings_allow(self, server: Server) -> None:
        """`max_parallel_branches` bounds one question."""
        titles = [f"t{n}" for n in range(6)]
        server.rules.update({f"####{title}:": " " + "word " * 20 for title in titles})
        llm = server.llm(conclude=False, max_parallel_branches=2)
        llm.invoke({"question": "Who?", "steps": titles})
        assert server.most == 2

    def test_many_questions_do_not_need_many_threads(self, server: Server) -> None:
        """Tasks wait without one, however many there are."""
        server.rules[ASKED] = Reply("Ben I.", hold=True)

        async def ask() -> list[ReasoningResult]:
            llm = server.llm({"max_concurrency": 100})
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
            asked = [llm.ainvoke("Who?", mode="sequential") for _ in range(20)]
            waiting = asyncio.gather(*asked)
            while server.under_way < 20:
                await asyncio.sleep(0.005)
            await asyncio.to_thread(server.go_on.set)  # the one thread is free
            return await waiting

        assert [result.conclusion for result in asyncio.run(ask())] == ["Ben I."] * 20


class TestCancelling:
    @pytest.mark.parametrize("cue", [ASKED, "####Ben:", "####%%%%\n"])
    def test_closing_a_stream_closes_its_connections(self, server: Server, cue: str) -> None:
        """In every stage."""
        server.rules[cue] = Reply(str(STUDENTS[cue.removeprefix("Question: ")]), hold=True)
        chunks = server.llm().stream("Who?")
        stage = {ASKED: "plan", "####Ben:": "expand"}.get(cue, "conclude")
        while (chunk := next(chunks)).stage != stage or not chunk.delta:
            continue
        server.reached.wait()
        chunks.close()
        assert server.at_rest()
        assert server.left >= 1  # a sibling may not have been whole either

    async def test_cancelling_a_task_closes_its_connections(self, server: Server) -> None:
        """And no other's."""
        server.rules["####Ben:"] = [Reply(" GPA 2.4", hold=True), Reply(" GPA 2.4")]
        llm = server.llm()
        task = asyncio.create_task(llm.ainvoke("Who?"))
        while not server.reached.is_set():
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await llm.ainvoke("Who?")).conclusion == "name: Ben"
        assert await asyncio.to_thread(server.at_rest)
        assert server.left >= 1  # a sibling may not have been whole either

    async def test_a_cancellation_that_comes_with_news_is_not_lost(self) -> None:
        """What a waiter is told, and that it is cancelled, in one turn of the loop."""
        scheduler = OpenAICompletionsEngine(base_url="http://localhost:1/v1").scheduler
        waiting = asyncio.create_task(scheduler.await_news(lambda: False))
        await asyncio.sleep(0.01)
        scheduler._tell()
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    def test_closing_the_engine_cancels_what_is_under_way(self, server: Server) -> None:
        """Whoever waits is told; the next question starts anew."""
        server.rules["####Ben:"] = [Reply(" GPA 2.4", hold=True), Reply(" GPA 2.4")]
        llm = server.llm()
        caught: list[BaseException] = []

        def ask() -> None:
            try:
                llm.invoke("Who?")
            except RequestCancelled as error:
                caught.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        server.reached.wait()
        assert llm.remote is not None
        llm.remote.close()
        thread.join()
        assert len(caught) == 1
        assert server.at_rest()
        assert llm.invoke("Who?").conclusion == "name: Ben"

    def test_no_thread_stays_behind(self, server: Server) -> None:
        """It ends with the last reference to the engine, or when that is closed."""
        gc.collect()  # what other tests have left behind
        assert http_threads() == 0
        llm = server.llm()
        llm.invoke("Who?")
        assert http_threads() == 1
        assert llm.remote is not None
        llm.remote.close()
        assert http_threads() == 0
        llm.invoke("Who?")
        assert http_threads() == 1
        del llm
        gc.collect()
        assert http_threads() == 0


def http_threads() -> int:
    """Threads that run a loop for HTTP."""
    return sum(thread.name == "langchain-pos-http" for thread in threading.enumerate())


class TestFields:
    def test_a_local_engine_is_refused(self) -> None:
        """With the way that it is given."""
        with pytest.raises(ValidationError, match="from_engine"):
            ParallelReasoningLLM(engine=object())  # type: ignore[arg-type]

    def test_model_and_engine_contradict_each_other(self) -> None:
        """The server's model belongs to the engine."""
        engine = OpenAICompletionsEngine(base_url="http://localhost:1/v1")
        with pytest.raises(ValidationError, match=r"OpenAICompletionsEngine\(model="):
            ParallelReasoningLLM(engine=engine, model="x")

    def test_an_address_is_needed(self) -> None:
        """With its scheme."""
        with pytest.raises(ValidationError, match="http://localhost:8000/v1"):
            OpenAICompletionsEngine(base_url="localhost:8000")

    def test_the_key_is_not_shown(self) -> None:
        """Neither by `repr` nor in cache keys."""
        engine = OpenAICompletionsEngine(base_url="http://localhost:1/v1", api_key="secret")  # type: ignore[arg-type]
        assert "secret" not in repr(engine) + repr(ParallelReasoningLLM(engine=engine))
        assert "secret" not in str(ChatParallelReasoning(engine=engine)._identifying_params)

    def test_the_key_is_sent_and_no_other(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A key of the environment belongs to another server."""
        monkeypatch.setenv("OPENAI_API_KEY", "elsewhere")
        server.llm({"api_key": "mine"}).invoke("Who?")
        server.llm().invoke("Who?")
        keys = {headers["authorization"] for headers in server.headers}
        assert keys == {"Bearer mine", "Bearer none"}

    def test_join_reuse_is_refused(self, server: Server) -> None:
        """The branches' keys and values are the server's."""
        with pytest.raises(InvalidRequestError, match="join='reuse'"):
            server.llm(join="reuse").invoke("Who?")

    def test_the_model_is_named_where_several_are_listed(self, server: Server) -> None:
        """Or none."""
        server.cards.clear()
        with pytest.raises(ModelLoadError, match="lists none; name the model"):
            server.llm().invoke("Who?")
        assert server.llm({"model": "x"}).invoke("Who?").model_name == "x"

    @pytest.mark.parametrize("status", [404, 500])
    def test_a_server_without_a_list_serves_all_the_same(self, server: Server, status: int) -> None:
        """Where the model is named; `transformers serve` fails over its list."""
        server.models_status = status
        assert server.llm({"model": "x"}).invoke("Who?").conclusion == "name: Ben"
        with pytest.raises(ModelLoadError, match="lists none"):
            server.llm().invoke("Who?")
