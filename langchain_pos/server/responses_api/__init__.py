"""/v1/responses, OpenAI's Responses API, said as a chat completion and back.

routes     POST, GET, DELETE; around the chat completion's response      ┐ translated at the
requests   a request, as the body of a chat completion                   │ edge: limits, queue,
  └─ input     its items, as messages                                    │ tools, replicas are
events     the chunks of a chat completion, as typed events              │ the chat completions'
  └─ output    items while they are written, each with its events        ┘
store      answers that a `previous_response_id` may name
"""
