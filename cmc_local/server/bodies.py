"""The fields of request bodies and their types; what is in messages `requests.py` checks.

A field that would change the reply and cannot be honoured is refused by name; `fields.py` says what
happens to those that are not here. What the server's limits bound is checked in `requests.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from cmc_local.server import fields
from cmc_local.server.errors import Refusal, invalid
from cmc_local.server.names import MAX_ALPHA

MAX_COUNT: Final = 2**31 - 1


class Body(BaseModel):
    """Strict: a number is not taken for a text, nor a text for a number."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class Asking(Body):
    """A request for a reply, whose other fields are looked at too."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    @property
    def notices(self) -> list[str]:
        """What its reader should know about fields that are not here."""
        return fields.check(self.model_extra or {})

    def refuse(self) -> None:
        """Raise Refusal for what cannot be honoured."""
        fields.check(self.model_extra or {})


def _one_or_more(value: Any) -> list[str]:
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise ValueError("give a text or a list of texts")
    return given


def _prompts(value: Any) -> list[str | list[int]]:
    """One or more prompts, each a text or token ids."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if _all_tokens(value):
            return [value]
        if all(isinstance(one, str) for one in value):
            return list(value)
        if all(isinstance(one, list) and _all_tokens(one) for one in value):
            return list(value)
    raise ValueError("give a text, a list of texts, token ids or a list of these; none empty")


def _all_tokens(value: list[Any]) -> bool:
    return bool(value) and all(type(one) is int for one in value)


Texts = Annotated[list[str], PlainValidator(_one_or_more)]
Alpha = Annotated[float | None, Field(ge=-MAX_ALPHA, le=MAX_ALPHA)]
Tokens = Annotated[int | None, Field(ge=-1, le=MAX_COUNT)]
"""-1 writes on until the context is full."""
Prompts = Annotated[list[str | list[int]], PlainValidator(_prompts)]


class AdapterAlpha(Body):
    """One adapter that acts; without an alpha as strongly as it does by itself."""

    adapter: str
    alpha: Alpha = None


class StreamOptions(Body):
    include_usage: bool | None = None


class JsonSchema(Body):
    content: Any = Field(None, alias="schema")


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    content: Any = Field(None, alias="schema")


class Generation(Asking):
    """What chat and text completions share."""

    model: str | None = None
    cmc: list[AdapterAlpha] | None = None
    max_tokens: Tokens = Field(
        None, validation_alias=AliasChoices("max_tokens", "n_predict", "max_new_tokens")
    )
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MAX_COUNT)
    """-1 keeps the whole vocabulary, as 0 does."""
    repeat_penalty: float | None = Field(
        None, gt=0, le=100, validation_alias=AliasChoices("repeat_penalty", "repetition_penalty")
    )
    penalty_last_n: int | None = Field(
        None, ge=-1, validation_alias=AliasChoices("penalty_last_n", "repeat_last_n")
    )
    frequency_penalty: float | None = Field(None, ge=-100, le=100)
    presence_penalty: float | None = Field(None, ge=-100, le=100)
    n: int | None = Field(None, ge=1)
    stop: Texts | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """-1 draws one, as no seed does."""
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None
    json_schema: Any = None
    regex: str | None = None
    lark: str | None = None
    grammar: str | None = None
    """GBNF."""
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: Any = None
    guided_grammar: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with what it cost."""
        options = self.stream_options
        return options is not None and bool(options.include_usage)


class ChatMessage(Body):
    """One message; `content` and `tool_calls` are looked at where messages are put together."""

    role: str
    content: Any = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None


class ChatBody(Generation):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Tokens = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
    cmc_plain: bool | None = None
    cmc_steer_thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None
    continue_final_message: bool | None = None
    """A last message of the assistant is always continued; false is refused."""
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    modalities: list[str] | None = None
    web_search_options: Any = None

    def refuse(self) -> None:
        super().refuse()
        for name in ("functions", "function_call", "audio", "web_search_options"):
            if getattr(self, name) not in (None, [], "none"):
                raise _not_done(name)
        if self.continue_final_message is False and self.messages[-1].role == "assistant":
            raise _not_done("continue_final_message: false")
        if self.modalities not in (None, ["text"]):
            raise _not_done("modalities")
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs needs logprobs to be true", "top_logprobs")
        if self.cmc_plain and not self.logprobs:
            raise invalid("cmc_plain needs logprobs to be true", "cmc_plain")

    @property
    def alternatives(self) -> int | None:
        """Alternatives for each token; None where no log-probabilities are wanted."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(Generation):
    """`POST /v1/completions`."""

    prompt: Prompts
    logprobs: int | None = Field(None, ge=0)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    def refuse(self) -> None:
        super().refuse()
        if self.suffix:
            raise _not_done("suffix")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise invalid("best_of must equal n: this server ranks no choices", "best_of")
        if self.max_tokens == 0 and not self.echo:
            raise invalid("max_tokens is 0: that needs echo", "max_tokens")


class EmbeddingBody(Body):
    """`POST /v1/embeddings`."""

    model: str | None = None
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)


class TokenizeBody(Body):
    """`POST /tokenize`, as llama-server has it (`content`) or vLLM (`prompt`)."""

    content: str = Field(validation_alias=AliasChoices("content", "prompt"))
    model: str | None = None
    add_special: bool = Field(
        False, validation_alias=AliasChoices("add_special", "add_special_tokens")
    )
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    tokens: list[int]
    model: str | None = None


class AdapterBody(Body):
    """`POST /v1/adapters`."""

    path: str = Field(min_length=1)
    model: str | None = None
    alpha: Alpha = None


Kind = TypeVar("Kind", bound=Body)


def parse(kind: type[Kind], data: bytes) -> Kind:
    """A body's fields. Raises Refusal (400) that names the first field that is wrong."""
    return _checked(lambda: kind.model_validate_json(data))


def converted(kind: type[Kind], found: Mapping[str, Any]) -> Kind:
    """A body of these fields, less those that are None. Raises Refusal as `parse` does."""
    return _checked(lambda: kind.model_validate({k: v for k, v in found.items() if v is not None}))


def _checked(read: Callable[[], Kind]) -> Kind:
    try:
        body = read()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = _dotted(first["loc"])
        told = str(first["msg"]).removeprefix("Value error, ")
        where = "the body" if param is None else param
        raise invalid(f"{where}: {told[:1].lower()}{told[1:]}", param) from None
    if isinstance(body, Asking):
        body.refuse()
    return body


def _dotted(location: tuple[int | str, ...]) -> str | None:
    """`("messages", 2, "role")` as `messages[2].role`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).removeprefix(".") or None


def _not_done(param: str) -> Refusal:
    return invalid(f"{param} cannot be honoured here: leave it out", param)
