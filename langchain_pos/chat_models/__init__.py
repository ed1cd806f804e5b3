"""`ChatParallelReasoning`: the three stages as a LangChain chat model."""
