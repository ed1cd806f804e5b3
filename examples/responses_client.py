"""OpenAI's Responses API over a server on loopback: branches are reasoning items."""

import threading
import time

from openai import OpenAI

from langchain_pos import ChatParallelReasoning, demo_question
from langchain_pos.server import bind, make_server

# `langchain-pos serve` does this part in a process of its own.
server = make_server(ChatParallelReasoning(), model_name="shipped")
socket = bind("127.0.0.1", 0)
thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
thread.start()
while not server.started:
    time.sleep(0.01)

client = OpenAI(base_url=f"http://127.0.0.1:{socket.getsockname()[1]}/v1", api_key="none")
for event in client.responses.create(model="shipped", input=demo_question(), stream=True):
    if event.type in ("response.reasoning_summary_text.delta", "response.output_text.delta"):
        print(event.delta, end="", flush=True)
    elif event.type == "response.output_item.done":
        print()
    elif event.type == "response.completed":
        print(f"\n{event.response.id}: {event.response.usage.output_tokens} tokens")

server.should_exit = True
thread.join()
