"""Many chat answers at once, and answers that are given up."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, ClassVar

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from langchain_pos import AnswerTimeoutError, InvalidRequestError
from tests.support.scripted import Halt
from tests.support.scripted_chat import Recorder, scripted_chat


class TestBatch:
    RULES: ClassVar[dict[str, str | list[str]]] = {
        f"Who{n}?\n\nAnswer:\n": f"It is {'x' * n} {n}" for n in range(12)
    }

    def inputs(self) -> list[str]:
        return [f"Who{n}?" for n in range(12)]

    async def test_shares_forward_passes(self) -> None:
        """All inputs are under way in the same passes, and each gets its own answer."""
        chat, script = scripted_chat(self.RULES, mode="sequential")
        alone = [chat.invoke(each).content for each in self.inputs()]
        passes = len(script.passes)
        script.passes.clear()
        assert [m.content for m in chat.batch(self.inputs())] == alone
        assert max(len({fed.segment for fed in each}) for each in script.passes) > 6
        assert len(script.passes) < passes / 2
        assert [m.content for m in await chat.abatch(self.inputs())] == alone
        messages = [[HumanMessage(each)] for each in self.inputs()]
        together = chat.generate(messages)
        assert [g[0].text for g in together.generations] == alone
        assert len(together.run or []) == 12
        done = dict(chat.batch_as_completed(self.inputs()))
        assert [done[n].content for n in range(12)] == alone  # type: ignore[union-attr]
        assert chat.engine.slots_in_use == 0

    def test_max_concurrency(self) -> None:
        """No more than so many are under way at once."""
        chat, script = scripted_chat(self.RULES, mode="sequential")
        chat.batch(self.inputs(), {"max_concurrency": 2})
        assert max(len({fed.segment for fed in each}) for each in script.passes) <= 2

    def test_each_has_its_own_error_and_callbacks(self) -> None:
        """With `return_exceptions` the others are whole, and each run is told its own end."""
        chat, _ = scripted_chat(self.RULES, mode="sequential")
        recorder = Recorder()
        mixed = ["Who1?", [AIMessage("no question")], "Who2?"]
        found = chat.batch(mixed, {"callbacks": [recorder]}, return_exceptions=True)
        assert [type(each).__name__ for each in found] == [
            "AIMessage",
            "InvalidRequestError",
            "AIMessage",
        ]
        assert sorted(recorder.told) == sorted(
            ["start"] * 3 + ["end"] * 2 + ["InvalidRequestError"]
        )

    def test_an_error_cancels_the_others(self) -> None:
        """Without `return_exceptions` it is raised, and the slots of the others are free."""
        chat, script = scripted_chat({"Who1?\n\nAnswer:\n": "…"}, mode="sequential")
        recorder = Recorder()
        with pytest.raises(InvalidRequestError):
            chat.batch(
                ["Who1?", [AIMessage("no question")]],
                {"callbacks": [recorder]},
                max_sequential_tokens=3000,
            )
        assert chat.engine.slots_in_use == 0
        assert len(script.passes) < 3000
        assert sorted(recorder.told)[:2] == ["InvalidRequestError", "RequestCancelled"]

    @pytest.mark.parametrize("asynchronous", [False, True])
    async def test_is_one_caller(
        self, monkeypatch: pytest.MonkeyPatch, *, asynchronous: bool
    ) -> None:
        """Its answers take turns with others' as those of one; two batches are two callers."""
        chat, _ = scripted_chat(self.RULES, mode="sequential")
        callers, submit = [], chat.engine.scheduler.submit

        def noted(*args: Any, **kwargs: Any) -> Any:
            callers.append(kwargs["caller"])
            return submit(*args, **kwargs)

        monkeypatch.setattr(chat.engine.scheduler, "submit", noted)
        for _ in range(2):
            if asynchronous:
                await chat.abatch(self.inputs()[:3])
            else:
                chat.batch(self.inputs()[:3])
        chat.invoke("Who1?")
        assert len(set(callers[:3])) == len(set(callers[3:6])) == 1
        assert callers[0] is not None
        assert callers[0] != callers[3]
        assert callers[6] is None

    async def test_an_error_cancels_the_other_tasks(self) -> None:
        """Of `abatch` as well: none of them goes on in the background."""
        chat, script = scripted_chat({"Who1?\n\nAnswer:\n": "…"}, mode="sequential")
        with pytest.raises(InvalidRequestError):
            await chat.abatch(
                ["Who1?", [AIMessage("no question")]],
                max_sequential_tokens=3000,
            )
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0.01)
        assert chat.engine.slots_in_use == 0
        assert len(script.passes) < 3000

    def test_empty(self) -> None:
        """No inputs, no answers."""
        chat, _ = scripted_chat({})
        assert chat.batch([]) == []


class TestCancelling:
    def test_closing_a_stream_frees_its_slots(self) -> None:
        """In the middle of an answer."""
        chat, _ = scripted_chat({"Who?\n\nAnswer:\n": "…"}, mode="sequential")
        stream = chat.stream("Who?")
        next(stream)
        assert chat.engine.slots_in_use > 0
        stream.close()  # type: ignore[attr-defined]
        assert chat.engine.slots_in_use == 0

    async def test_cancelling_a_task_frees_its_slots(self) -> None:
        """`ainvoke` ends when its slots are free."""
        chat, script = scripted_chat({"Who?\n\nAnswer:\n": "…"}, mode="sequential")
        halt = Halt(script, at=3)
        task = asyncio.create_task(chat.ainvoke("Who?"))
        await asyncio.to_thread(halt.inside.wait)
        task.cancel()
        threading.Timer(0.05, halt.go_on.set).start()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert chat.engine.slots_in_use == 0

    async def test_timeout(self) -> None:
        """An answer that takes too long is given up, and its slots are free."""
        rules = {"Who?\n\nAnswer:\n": "…"}
        chat, _ = scripted_chat(rules, mode="sequential", timeout=0.01, max_sequential_tokens=3000)
        with pytest.raises(AnswerTimeoutError, match=r"0\.01"):
            chat.invoke("Who?")
        with pytest.raises(TimeoutError):
            await chat.ainvoke("Who?")
        assert chat.engine.slots_in_use == 0
