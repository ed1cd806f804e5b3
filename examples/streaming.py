"""Watch the branches being written at once, then check that the chunks add up to the result."""

import asyncio
from functools import reduce
from operator import add

from langchain_pos import ParallelReasoningLLM, demo_question


async def main() -> None:
    """Stream one answer."""
    llm = ParallelReasoningLLM()
    chunks = []
    async for chunk in llm.astream(demo_question()):
        chunks.append(chunk)
        where = f"{chunk.stage} {chunk.branch}" if chunk.stage == "expand" else chunk.stage
        if chunk.delta:
            print(f"{where:10} {chunk.delta!r}")
    whole = reduce(add, chunks)
    print(f"\n{len(chunks)} chunks, {len(whole.branches)} branches: {whole.conclusion}")


asyncio.run(main())
