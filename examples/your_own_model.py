"""Your own Hugging Face model: by hub name, by folder, or already loaded.

Run it with a name or folder: python examples/your_own_model.py Qwen/Qwen2.5-7B-Instruct
Without one it loads the shipped model's folder, to show the way.
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

from langchain_pos import ParallelReasoningLLM, demo_question, embedded_model_path

name = sys.argv[1] if len(sys.argv) > 1 else str(embedded_model_path())

# 1. By name or folder. Budgets, sampling and the seed are fields, or set for one call.
llm = ParallelReasoningLLM(model=name, max_branch_tokens=200, dtype="auto", device="auto")
print(llm.invoke(demo_question()).conclusion)
print(llm.invoke(demo_question(), temperature=0.5, seed=7).conclusion)

# 2. Already loaded. The model is probed: one whose branches would leak is refused.
model = AutoModelForCausalLM.from_pretrained(name)
tokenizer = AutoTokenizer.from_pretrained(name)
llm = ParallelReasoningLLM.from_model(model, tokenizer)
steps = ["Marisol Quant", "Tobin Ashgrove"]  # given by the caller: no stage 1
result = llm.invoke({"question": demo_question(), "steps": steps})
print([branch.text for branch in result.branches], result.forward_passes)
