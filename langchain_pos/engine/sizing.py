"""What a model and its machine allow: end tokens, slots, CUDA graphs, and what a pass costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from langchain_pos.engine.forest.segments import Ledger
from langchain_pos.engine.memory import available_memory
from langchain_pos.errors import OutOfSlotsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from langchain_pos.engine.forest.slots import SlotPool
    from langchain_pos.engine.forward.forward_pass import ForwardPass


def eos_token_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, vocabulary: int
) -> frozenset[int]:
    """The tokens that end a text: those that the model configures, and the tokenizer's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    known = [i for i in [*ids, tokenizer.eos_token_id] if i is not None]
    return frozenset(i for i in known if i < vocabulary)  # tokenizers may add some of their own


def can_record(model: PreTrainedModel) -> bool:
    """Whether the whole model is on one CUDA device."""
    devices = {parameter.device for parameter in model.parameters()}
    return len(devices) == 1 and next(iter(devices)).type == "cuda"


def pass_seconds(forward: ForwardPass) -> Callable[[int], float]:
    """A function that runs a pass of n rows, all of them sampled, and returns its seconds."""

    def seconds(rows: int) -> float:
        root = forward.forest.root(Ledger())
        try:
            began = time.perf_counter()
            logits = forward.run([(root, [0] * rows)], [0], [rows - 1])
            logits.amax(dim=-1).tolist()  # waits for the device
            return time.perf_counter() - began
        finally:
            forward.forest.release(root)

    return seconds


def check_room(pool: SlotPool) -> None:
    """Refuse a number of slots that holds no token, because a segment's states count as more.

    Raises:
        OutOfSlotsError: with the number that they count as.
    """
    if not pool.room(1):
        raise OutOfSlotsError(
            f"max_slots={pool.max_slots}: the states of one segment of this model count as "
            f"{pool.states(1)} slots; raise max_slots, or omit it"
        )


def slots_that_fit(model: PreTrainedModel, slot_bytes: int) -> int:
    """Slots whose keys and values fill half of the memory available now."""
    return max(available_memory(model.device) // 2 // slot_bytes, 1024)
