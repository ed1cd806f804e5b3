"""The three stages as a LangChain graph, for `get_graph().draw_mermaid()` and the like."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_core.runnables import RunnablePassthrough
from langchain_core.runnables.graph import Graph

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from langchain_pos.runnables.parallel_reasoning import ParallelReasoningLLM


def reasoning_graph(llm: ParallelReasoningLLM, config: RunnableConfig | None) -> Graph:
    """Input, plan, branches, conclusion, output; what the settings leave out is not there."""
    metadata = config.get("metadata") if config else None
    graph = Graph()
    last = graph.add_node(llm.get_input_schema(config))
    stages = ["plan", "branches", "conclusion"] if llm.mode == "parallel" else ["answer"]
    for name in stages if llm.conclude else stages[:-1]:
        stage = graph.add_node(RunnablePassthrough(name=name), metadata=metadata)
        graph.add_edge(last, stage)
        last = stage
    graph.add_edge(last, graph.add_node(llm.get_output_schema(config)))
    return graph
