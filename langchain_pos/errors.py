"""Every error that langchain-pos raises, each with what to do about it.

All of them derive from `ParallelReasoningError`, so `except ParallelReasoningError` catches what
is ours and nothing else. The message says what was given, what is allowed and what to do.
This module imports nothing, so that the engine and the LangChain side share one family.
"""


class ParallelReasoningError(Exception):
    """Base of every error of this package."""


class InvalidRequestError(ParallelReasoningError, ValueError):
    """The request itself cannot be served: an empty question, a negative budget, duplicate titles.

    Remedy: change the request as the message says.
    """


class PlanFormatError(ParallelReasoningError, ValueError):
    """A text is not a usable skeleton.

    `PlanParser` raises it for a text without steps, and the reasoner when
    `on_plan_failure="raise"` and every attempt failed. Remedy: a higher `max_plan_attempts`, a
    larger `max_plan_tokens`, or the default `on_plan_failure="sequential"`, which answers anyway.

    Attributes:
        text: what the model wrote.
    """

    def __init__(self, message: str, *, text: str = "") -> None:
        super().__init__(message)
        self.text = text


class ModelLoadError(ParallelReasoningError):
    """A model or tokenizer could not be loaded: unknown name, missing or corrupt files.

    Remedy: the message names the folder or the hub name, the file that is wrong, and the setting
    that allows it where one does.
    """


class UnsupportedModelError(ParallelReasoningError):
    """The model loads, but its branches cannot be isolated from one another by a mask.

    Recurrent and linear-attention layers keep a state that every token passes through. Remedy:
    another model, or `mode="sequential"` in software that serves such models.
    """


class ContextLengthError(ParallelReasoningError, ValueError):
    """The prompt and the budgets need more positions than the model has been built for.

    Remedy: a shorter question, smaller budgets, or a model with a longer context.
    """


class OutOfSlotsError(ParallelReasoningError, MemoryError):
    """The request needs more KV-cache slots than the engine may hold.

    Raised before any work when it can never fit, while decoding when memory runs out all the
    same. Remedy: smaller budgets, a larger `max_slots`, or more memory.
    """


class NonFiniteLogitsError(ParallelReasoningError, ArithmeticError):
    """The model returned NaN or only minus infinity for a token.

    Mostly a model run in a dtype that overflows (float16 with bfloat16 weights). Remedy: another
    `dtype`; otherwise the weights are damaged.
    """


class MissingExtraError(ParallelReasoningError, ImportError):
    """Something optional is used whose package is not installed.

    Remedy: install the extra that the message names, for instance `langchain-pos[plot]`.
    """


class ServerError(ParallelReasoningError, ConnectionError):
    """A server that answers for the engine cannot be reached, refuses, or breaks off.

    Remedy: the message says what the server said. Look at its address, its log and the API key;
    what is worth trying again has been tried `max_retries` times.

    Attributes:
        status: HTTP status, None when there was none.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class AnswerTimeoutError(ParallelReasoningError, TimeoutError):
    """An answer took longer than the `timeout` of the chat model; what it held is free again.

    Remedy: a longer `timeout`, or smaller budgets.
    """


class RequestCancelled(ParallelReasoningError):
    """The request was cancelled while another thread still waited for it."""
