"""Questions over a server: plans, branches and conclusions, tokenizers, servers' dialects."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

import pytest
from transformers import AutoTokenizer

from langchain_pos import (
    ChatParallelReasoning,
    OpenAICompletionsEngine,
    embedded_model_path,
)
from langchain_pos.errors import (
    InvalidRequestError,
    ModelLoadError,
    PlanFormatError,
)
from langchain_pos.reasoning.chat_template import encode_prompt
from langchain_pos.reasoning.prompts import load_prompts
from langchain_pos.reasoning.skeleton_grammar import skeleton_grammar
from langchain_pos.results.data import TokenUsage
from tests.support.completions_server import (
    ASKED,
    MODEL,
    OUTLINE,
    Gpa,
    Reply,
    Server,
    pieces,
    serving,
    told,
)
from tests.support.scripted import SMALL, STUDENTS, scripted_llm

SHIPPED = str(embedded_model_path())


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


class TestServersThatGoOn:
    def test_a_stop_text_ends_a_branch_there(self, server: Server) -> None:
        """Where the server pays no heed to it, the request is cancelled after it."""
        server.rules["####Ann:"] = Reply(" a\n####Cem: " + "on and on " * 200, ignore_stop=True)
        result = server.llm(max_branch_tokens=900).invoke("Who?")
        assert [branch.text for branch in result.branches] == ["a", "GPA 2.4"]
        assert result.branches[0].finish_reason == "stop"
        assert server.at_rest()
        assert server.left == 1

    def test_a_skeleton_that_repeats_itself_is_ended(self, server: Server) -> None:
        """Long before its budget; what is asked next is another attempt."""
        round_about = "####Ann:......\n####Ben:......\n" * 200
        server.rules[ASKED] = [Reply(round_about), Reply(OUTLINE)]
        server.rules[")\n\nAnswer:\n"] = OUTLINE
        result = server.llm(max_plan_tokens=1500).invoke("Who?")
        assert (result.mode, result.plan_attempts) == ("parallel", 2)
        assert server.at_rest()
        assert server.left == 1


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
        [
            ("sglang", "ebnf", "json_schema"),
            ("vllm-guided", "guided_grammar", "guided_json"),
            ("llamacpp", "grammar", "json_schema"),
        ],
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

    @pytest.mark.parametrize(("owner", "field"), [("sglang", "ebnf"), ("llamacpp", "grammar")])
    def test_others_name_themselves(self, owner: str, field: str) -> None:
        """By `owned_by`, too."""
        with serving(dict(STUDENTS), owned_by=owner) as server:
            server.llm().invoke("Who?")
            assert field in server.asked[0]

    def test_json_is_tried_again_where_nothing_holds_the_server_to_it(self, server: Server) -> None:
        """With another seed, warmer; only what is kept is told."""
        server.rules["####Ann:"] = [Reply("no JSON"), Reply('{"gpa": 3}')]
        server.rules["####Ben:"] = "never JSON"
        whole = reduce(add, list(server.llm(branch_schema=Gpa).stream("Who?"))).result()
        ann, ben = whole.branches
        assert (ann.parsed, ann.text, ann.error) == (Gpa(gpa=3), '{"gpa": 3}', None)
        assert (ben.finish_reason, ben.text) == ("error", "never JSON")
        assert "not a valid Gpa" in str(ben.error)
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
