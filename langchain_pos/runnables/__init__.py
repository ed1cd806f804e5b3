"""`ParallelReasoningLLM`: the three stages as a LangChain runnable."""
