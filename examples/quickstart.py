"""Ask the shipped model a question that falls into parts; look at everything that comes back."""

from langchain_pos import ParallelReasoningLLM, demo_question

llm = ParallelReasoningLLM()  # the shipped model, on the CPU, no download
result = llm.invoke(demo_question())

print(result.preamble)
for branch in result.branches:
    print(f"  {branch.title:20} {branch.text}   [{branch.finish_reason}]")
print(result.conclusion)

passes, tokens = result.forward_passes, result.usage.output_tokens
print(f"\n{tokens} tokens in {passes.total} forward passes ({passes})")
