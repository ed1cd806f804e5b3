"""Many questions at once: batches, threads, and a model that is loaded once."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from langchain_pos import ParallelReasoningLLM
from langchain_pos.engine.engine import Engine
from langchain_pos.engine.scheduler.request import Request
from langchain_pos.errors import InvalidRequestError
from tests.support.company import QUESTIONS, same
from tests.support.scripted import (
    BARE,
    SMALL,
    STUDENTS,
    Halt,
    byte_level,
    random_llm,
    scripted_llm,
    tiny_model,
)


class TestBatch:
    def test_a_batch_equals_its_questions_one_by_one(self) -> None:
        """fp32, greedy: company changes no token, and saves forward passes."""
        llm = random_llm(allow_decline=False)
        alone = [llm.invoke(question) for question in QUESTIONS]
        before = llm.engine.forward.count
        together = llm.batch(QUESTIONS)
        passes = llm.engine.forward.count - before
        assert all(same(a, b) for a, b in zip(alone, together, strict=True))
        assert passes < sum(result.forward_passes.total for result in alone) / 2
        assert llm.engine.slots_in_use == 0

    def test_a_seeded_question_is_the_same_in_any_company(self) -> None:
        """Sampling with a seed of its own; who runs beside does not matter."""
        llm = random_llm(allow_decline=False, temperature=1.0, seed=12)
        alone = llm.invoke(QUESTIONS[0])
        assert same(alone, llm.batch(QUESTIONS)[0])

    def test_questions_of_all_kinds_share_a_batch(self) -> None:
        """Given steps, an ordinary question, and one that is refused."""
        llm, _ = scripted_llm(STUDENTS)
        steps, plain, bad = llm.batch(
            [{"question": "Who?", "steps": ["Ben"]}, "Who?", ""], return_exceptions=True
        )
        assert [b.title for b in steps.branches] == ["Ben"]
        assert plain.conclusion == "name: Ben"
        assert isinstance(bad, InvalidRequestError)

    def test_without_return_exceptions_the_first_error_is_raised(self) -> None:
        """And nothing is left behind."""
        llm, _ = scripted_llm(STUDENTS)
        with pytest.raises(InvalidRequestError, match="empty"):
            llm.batch(["Who?", "", "Who?"])
        assert llm.engine.slots_in_use == 0

    def test_an_empty_batch_is_an_empty_list(self) -> None:
        """No question, no pass."""
        llm, script = scripted_llm(STUDENTS)
        assert llm.batch([]) == []
        assert list(llm.batch_as_completed([])) == []
        assert script.passes == []

    @pytest.mark.parametrize("call", ["batch", "batch_as_completed"])
    def test_max_concurrency_bounds_what_is_under_way(self, call: str) -> None:
        """With two at once no pass feeds a third question."""
        llm, script = scripted_llm(STUDENTS)
        list(getattr(llm, call)(["Who?"] * 5, {"max_concurrency": 2}))
        prefills = [
            sum(feed.text.startswith("Question:") for feed in feeds) for feeds in script.passes
        ]
        assert (prefills[0], sum(prefills)) == (2, 5)
        assert max(prefills) == 2

    def test_results_come_as_they_are_done(self) -> None:
        """The short question overtakes the long one; indices tell which is which."""
        llm, _ = scripted_llm({**STUDENTS, "Long?\n\nAnswer:\n": "…"}, max_preamble_tokens=16)
        order = [place for place, _ in llm.batch_as_completed(["Long?", "Who?"])]
        assert order == [1, 0]

    def test_closing_batch_as_completed_cancels_the_rest(self) -> None:
        """Whoever has enough leaves nothing running."""
        llm, script = scripted_llm({**STUDENTS, "Long?\n\nAnswer:\n": "…"})
        results = llm.batch_as_completed(["Who?", "Long?"])
        assert next(results)[0] == 0
        results.close()  # type: ignore[attr-defined]
        assert llm.engine.slots_in_use == 0
        count = len(script.passes)
        assert llm.invoke("Who?").conclusion == "name: Ben"
        assert all(len(feeds) <= 2 for feeds in script.passes[count:])


class TestThreads:
    def test_many_threads_share_one_engine(self) -> None:
        """Eight questions from four threads: every answer is the right one."""
        llm = random_llm(allow_decline=False)
        expected = [llm.invoke(question) for question in QUESTIONS]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(llm.invoke, QUESTIONS * 2))
        assert all(same(a, b) for a, b in zip(expected * 2, found, strict=True))
        assert llm.engine.slots_in_use == 0

    def test_two_threads_at_once_share_passes(self) -> None:
        """While one thread drives, the other's question is in the same passes."""
        llm, script = scripted_llm(STUDENTS)
        halt = Halt(script, at=1)
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(llm.invoke, "Who?")
            halt.inside.wait()
            second = pool.submit(llm.invoke, "Who?")
            while not llm.engine.scheduler._incoming:
                threading.Event().wait(0.005)
            halt.go_on.set()
            assert [r.result().conclusion for r in (first, second)] == ["name: Ben"] * 2
        assert any(len({f.segment.owner for f in feeds}) == 2 for feeds in script.passes)

    def test_a_batch_lets_others_in_between(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where slots are short, who comes later waits for one of a batch, not for all."""
        llm, script = scripted_llm(STUDENTS, max_slots=2048)
        monkeypatch.setattr("langchain_pos.engine.scheduler.scheduler.ROOM", 2048)  # one at a time
        scheduler, ended = llm.engine.scheduler, []
        end = scheduler._end

        def noted(request: Request[Any], **kwargs: Any) -> None:
            if not request.done:
                ended.append(request.caller)
            end(request, **kwargs)

        monkeypatch.setattr(scheduler, "_end", noted)
        halt = Halt(script, at=1)
        with ThreadPoolExecutor(2) as pool:
            batch = pool.submit(llm.batch, ["Who?"] * 6)
            halt.inside.wait()
            single = pool.submit(llm.invoke, "Who?")
            while len({request.caller for request in scheduler._incoming}) < 2:
                threading.Event().wait(0.005)
            halt.go_on.set()
            assert single.result().conclusion == "name: Ben"
            assert len(batch.result()) == 6
        (alone,) = (caller for caller in ended if ended.count(caller) == 1)
        assert len(ended) == 7
        assert ended.index(alone) == 2, "behind the one under way and the one whose turn it was"

    def test_an_error_in_one_thread_is_that_threads_alone(self) -> None:
        """A refused question beside a good one."""
        llm, _ = scripted_llm(STUDENTS)

        def ask(question: str) -> object:
            try:
                return llm.invoke(question).conclusion
            except InvalidRequestError as error:
                return type(error)

        with ThreadPoolExecutor(2) as pool:
            assert (
                list(pool.map(ask, ["Who?", "", "Who?", ""]))
                == [
                    "name: Ben",
                    InvalidRequestError,
                ]
                * 2
            )


class TestLoading:
    @pytest.fixture
    def loads(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
        """What was loaded, in place of loading it."""
        calls: list[tuple[str, dict[str, Any]]] = []

        def load(name: str, **options: Any) -> Engine:
            calls.append((name, options))
            threading.Event().wait(0.05)  # long enough for another thread to ask as well
            return Engine(tiny_model(), byte_level(), max_slots=4096)

        monkeypatch.setattr(Engine, "load", load)
        return calls

    def test_the_constructor_loads_nothing(self, loads: list[Any]) -> None:
        """Neither does a chain or a copy; the first question does, once."""
        llm = ParallelReasoningLLM(model="some/model", prompts=BARE, **SMALL)
        llm.with_config(tags=["x"]).bind(seed=1)
        assert loads == []
        llm.invoke("Who?")
        llm.invoke("Who?")
        assert [name for name, _ in loads] == ["some/model"]

    def test_two_threads_load_it_once(self, loads: list[Any]) -> None:
        """The second waits for the first."""
        llm = ParallelReasoningLLM(model="some/model", prompts=BARE, **SMALL)
        with ThreadPoolExecutor(4) as pool:
            engines = list(pool.map(lambda _: llm.engine, range(4)))
        assert len(loads) == 1
        assert len(set(map(id, engines))) == 1

    @pytest.mark.parametrize("outline", ["paper", "native"])
    def test_weights_go_with_the_last_reference(self, loads: list[Any], outline: str) -> None:
        """At once, not when the garbage collector comes by: they may be gigabytes."""
        gc.collect()
        gc.disable()
        try:
            llm = ParallelReasoningLLM(model="one/lost", prompts=BARE, outline=outline, **SMALL)
            llm.invoke("Who?")
            "".join(chunk.conclusion for chunk in llm.stream("Who?"))
            engine, keys = weakref.ref(llm.engine), weakref.ref(llm.engine.forward.cache)
            del llm
            assert (engine(), keys()) == (None, None)
        finally:
            gc.enable()

    def test_fields_reach_the_loader(self, loads: list[Any]) -> None:
        """Names as in the constructor; `model_kwargs` as they are."""
        llm = ParallelReasoningLLM(
            model="some/model", dtype="float32", device="cpu", max_slots=99, revision="main",
            attn_implementation="sdpa", model_kwargs={"device_map": "cpu"},
        )  # fmt: skip
        assert llm.engine.describe()["dtype"] == "float32"
        ((name, options),) = loads
        assert name == "some/model"
        assert options == {
            "dtype": "float32",
            "device": "cpu",
            "max_slots": 99,
            "revision": "main",
            "attn_implementation": "sdpa",
            "draft_rows": None,
            "prefix_cache_tokens": 16384,
            "cuda_graphs": None,
            "pack_weights": None,
            "quantization": None,
            "trust_remote_code": False,
            "use_safetensors": True,
            "device_map": "cpu",
        }

    def test_no_model_is_the_shipped_one(self, loads: list[Any]) -> None:
        """Its folder lies in the package."""
        assert ParallelReasoningLLM(max_slots=1238).engine  # as no other test has it loaded
        folder = Path(loads[0][0])
        assert (folder.name, folder.parent.name) == ("embedded", "langchain_pos")

    def test_another_model_in_the_config_is_loaded_beside_the_first(self, loads: list[Any]) -> None:
        """A configurable `model` loads each once, however often it is asked for."""
        from langchain_core.runnables import ConfigurableField

        llm = ParallelReasoningLLM(model="a/a", prompts=BARE, **SMALL)
        changing = llm.configurable_fields(model=ConfigurableField(id="model"))
        for name in ("a/a", "b/b", "a/a", "b/b"):
            result = changing.invoke("Who?", {"configurable": {"model": name}})
            assert result.model_name == name
        assert [name for name, _ in loads] == ["a/a", "b/b"]

    def test_a_folder_brings_its_own_wording(self, loads: list[Any], tmp_path: Path) -> None:
        """`parallel_reasoning.json` beside the weights says what the model was trained on."""
        (tmp_path / "parallel_reasoning.json").write_text(BARE.model_dump_json())
        llm = ParallelReasoningLLM(model=str(tmp_path), **SMALL)
        assert llm.reasoner.prompts == BARE
        assert llm.reasoner.model_name == tmp_path.name
        other = BARE.model_copy(update={"sequential": "{question}!"})
        assert ParallelReasoningLLM(model=str(tmp_path), prompts=other).reasoner.prompts == other
