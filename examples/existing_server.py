"""The three stages over a server that runs already; here `transformers serve` on loopback."""

import socket
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

from langchain_pos import (
    OpenAICompletionsEngine,
    ParallelReasoningLLM,
    demo_question,
    embedded_model_path,
)

model = str(embedded_model_path())

# With vLLM: `vllm serve Qwen/Qwen2.5-7B-Instruct`, and its address below.
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
command = "from transformers.cli.transformers import main; main()"
options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
server = subprocess.Popen(
    [sys.executable, "-c", command, "serve", model, *options], stderr=subprocess.DEVNULL
)
while server.poll() is None:
    try:
        urlopen(f"http://127.0.0.1:{port}/health").close()
        break
    except URLError:
        time.sleep(0.2)

try:
    engine = OpenAICompletionsEngine(
        base_url=f"http://127.0.0.1:{port}/v1", model=model, tokenizer=model
    )
    llm = ParallelReasoningLLM(engine=engine)
    for chunk in llm.stream(demo_question()):
        print(chunk.delta, end="", flush=True)
    print()
finally:
    server.terminate()
    server.wait()
