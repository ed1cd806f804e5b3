"""Every error that langchain-pos raises, each with its remedy.

All derive from `ParallelReasoningError`, so `except ParallelReasoningError` catches our errors and
no others. Messages say what was given, what is allowed and what to do.
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

    Raised by `PlanParser` for a text without steps, and by the reasoner when
    `on_plan_failure="raise"` and every attempt failed. Remedy: a higher `max_plan_attempts`, a
    larger `max_plan_tokens`, or the default `on_plan_failure="sequential"`, which answers anyway.

    Attributes:
        text: as written by the model.
    """

    def __init__(self, message: str, *, text: str = "") -> None:
        super().__init__(message)
        self.text = text


class ModelLoadError(ParallelReasoningError):
    """A model or tokenizer could not be loaded: unknown name, missing or corrupt files.

    Remedy: the message names the folder or hub name, the faulty file, and the setting that allows
    it if there is one.
    """


class UnsupportedModelError(ParallelReasoningError):
    """The model loads, but its branches cannot be isolated from one another by a mask.

    Recurrent and linear-attention layers keep a state that every token passes through. Remedy:
    another model, or `mode="sequential"` in software that serves such models.
    """


class ContextLengthError(ParallelReasoningError, ValueError):
    """The prompt and the budgets need more positions than the model supports.

    Remedy: a shorter question, smaller budgets, or a model with a longer context.
    """


class OutOfSlotsError(ParallelReasoningError, MemoryError):
    """The request needs more KV-cache slots than the engine may hold.

    Raised before any work if it can never fit, or while decoding if memory runs out. Remedy:
    smaller budgets, a larger `max_slots`, or more memory.
    """


class NonFiniteLogitsError(ParallelReasoningError, ArithmeticError):
    """The model returned NaN or only minus infinity for a token.

    Usually a model in a dtype that overflows (float16 with bfloat16 weights). Remedy: another
    `dtype`; otherwise the weights are damaged.
    """


class MissingExtraError(ParallelReasoningError, ImportError):
    """An optional feature needs a package that is not installed.

    Remedy: install the extra that the message names, for instance `langchain-pos[plot]`.
    """


class ServerError(ParallelReasoningError, ConnectionError):
    """A server used as an engine cannot be reached, refuses, or breaks off.

    Remedy: the message quotes the server. Check its address, its log and the API key; failures
    that may be temporary have been retried `max_retries` times.

    Attributes:
        status: HTTP status, None when there was none.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class AnswerTimeoutError(ParallelReasoningError, TimeoutError):
    """An answer took longer than the `timeout` of the chat model; its slots are free again.

    Remedy: a longer `timeout`, or smaller budgets.
    """


class RequestCancelled(ParallelReasoningError):
    """The request was cancelled while another thread was waiting for it."""
