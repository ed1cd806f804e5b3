"""A server on loopback, asked by OpenAI's client; the branches come beside the text."""

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
stream = client.chat.completions.create(
    model="shipped",
    messages=[{"role": "user", "content": demo_question()}],
    stream=True,
)
branches: dict[str, str] = {}
answer = ""
for chunk in stream:
    told = getattr(chunk, "reasoning_delta", None) or {}
    if told.get("stage") == "expand":
        branches[told["title"]] = branches.get(told["title"], "") + told.get("text", "")
    answer += chunk.choices[0].delta.content or ""

for title, text in branches.items():
    print(f"{title}: {text}")
print(f"\n{answer}")

server.should_exit = True
thread.join()
