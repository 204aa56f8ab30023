"""Replies of a given form: a JSON schema, a regular expression, a Lark or a GBNF grammar.

    Sampling --form_of--> text --Forms.matcher--> Matcher --allowed()--> ids --take(id)--> ...

The reading is llguidance's: it says which tokens may come next, whatever the form, from the tokens
so far; so the form masks logits that a shift was added to, like any others. Its limits bound the
work for one step, and a form that it cannot keep is refused by name. Knows no model.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cmc_local.errors import UsageError
from cmc_local.settings import Sampling
from cmc_local.text.vocabulary import Role, Vocabulary

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from llguidance._lib import JsonCompileOptions

Ids = NDArray[np.int32]


@dataclass(frozen=True, eq=False, slots=True)
class Choice:
    """What a form leaves at one place, said by the fewer tokens."""

    ids: Ids
    """(n,) int32, in rising order"""
    forbidden: bool
    """Whether these are the tokens that may not come."""


_JSON: Final[JsonCompileOptions] = {
    "whitespace_pattern": r"(\n[ \t]{0,32}| {0,2})",
    "coerce_one_of": False,
    "lenient": False,
}
"""White space between JSON's marks is bounded: a model could go on with it for ever. What the
schema asks for and llguidance does not know is an error."""
_OPENS: Final = {
    *("additionalProperties", "unevaluatedProperties", "patternProperties", "minProperties"),
    *("anyOf", "oneOf", "$ref", "not", "if"),
}
"""Beside `properties`, these may speak of further ones."""
_NAMED: Final = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
"""Under these stand schemas by name."""
_DATA: Final = {"enum", "const", "default", "examples", "required"}
"""What stands under these is no schema."""
_DESCRIBING: Final = {"properties", "anyOf", "oneOf", "$ref", "allOf"}
"""Each of these may say which properties an object has."""
_TOGETHER: Final = {"not", "if", "dependentSchemas", "$dynamicRef"}
"""These never say it alone."""


def form_of(sampling: Sampling) -> str | None:
    """The form that a reply is to have, as llguidance's own text; None for any.

    Raises UsageError, one line that names what cannot be kept, before anything is computed.
    """
    for name in ("json_schema", "regex", "lark", "grammar"):
        value = getattr(sampling, name)
        if value is not None:
            return _checked(name, value)
    return None


@cache
def _limits() -> Any:
    """What one step and a whole grammar may cost: some milliseconds and megabytes."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def _checked(name: str, value: str) -> str:
    from llguidance import LLMatcher

    what = {"json_schema": "JSON schema", "regex": "regular expression"}.get(name, "grammar")
    try:
        if not value.strip():
            raise ValueError("it is empty")
        form = _TEXT_OF[name](value)
        wrong = LLMatcher.validate_grammar(form, None, limits=_limits())
    except RecursionError:
        wrong = "it is nested too deep"
    except ValueError as error:
        wrong = str(error)
    if wrong and not wrong.startswith("WARNING"):
        raise UsageError(f"the {what} cannot be used ({_one_line(wrong)})")
    return form


def _schema(text: str) -> str:
    from llguidance import LLMatcher

    schema = json.loads(text)
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise ValueError("a schema is a JSON object")
    return LLMatcher.grammar_from_json_schema(_closed(schema), overrides=_JSON)


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose objects have the properties that it names and no others, unless it says so.

    As in llama.cpp and OpenAI's strict mode: a small model that may invent properties goes on and
    on. What is valid then is valid without it too. A schema that composes objects stays as it is.
    """
    found: dict[str, Any] = schema if _composes(schema) else _close(schema)
    return found


def _composes(part: Any) -> bool:
    """Whether one object is described in several places, of which none may forbid the others'."""
    if isinstance(part, list):
        return any(_composes(one) for one in part)
    if not isinstance(part, Mapping):
        return False
    several = isinstance(part.get("allOf"), list) and len(part["allOf"]) > 1
    if several or _TOGETHER & set(part) or len(_DESCRIBING & set(part)) > 1:
        return True
    for name, value in part.items():
        inner = list(value.values()) if name in _NAMED and isinstance(value, dict) else value
        if name not in _DATA and _composes(inner):
            return True
    return False


def _close(part: Any) -> Any:
    if isinstance(part, list):
        return [_close(one) for one in part]
    if not isinstance(part, Mapping):
        return part
    closed: dict[str, Any] = {}
    for name, value in part.items():
        if name in _NAMED and isinstance(value, dict):
            closed[name] = {key: _close(one) for key, one in value.items()}
        else:
            closed[name] = value if name in _DATA else _close(value)
    named = part.get("properties")
    if isinstance(named, dict) and not _OPENS & set(part):
        required = part.get("required")
        if not isinstance(required, list) or all(one in named for one in required):
            closed["additionalProperties"] = False
    return closed


def json_rule(schema: Mapping[str, Any], *, lenient: bool = False) -> str:
    """A schema as part of a Lark rule, written on one line.

    `lenient` passes over what cannot be kept of it.
    """
    options = {**_JSON, "whitespace_pattern": " ?", "lenient": lenient}
    return "%json " + json.dumps({**_closed(dict(schema)), "x-guidance": options})


def _regex(text: str) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_regex(text.removeprefix("^").removesuffix("$"))


def _lark(text: str) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_lark(text)


def _gbnf(text: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return _lark(gbnf_to_lark(text))
    except RecursionError:
        raise
    except Exception as error:  # it raises Exception itself for a rule that is not there
        raise ValueError(str(error)) from None


_TEXT_OF: Final[dict[str, Callable[[str], str]]] = {
    "json_schema": _schema,
    "regex": _regex,
    "lark": _lark,
    "grammar": _gbnf,
}


def _one_line(told: str) -> str:
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return lines[0][:300] if lines else "it cannot be read"


class Forms:
    """What makes matchers for one base vocabulary; any thread may ask for one."""

    def __init__(self, vocabulary: Vocabulary, encode: Callable[[str], list[int]]) -> None:
        """`encode` gives the tokens of a text that stands within a longer one, no BOS."""
        if Role.EOS not in vocabulary.roles:
            raise UsageError("this model has no token that ends a reply: it can keep to no form")
        self._words = _Words(vocabulary, encode)
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None

    def matcher(self, form: str) -> Matcher:
        """A matcher at the beginning of a form. Raises UsageError where the limits are met."""
        from llguidance import LLMatcher, LLTokenizer

        with self._lock:  # a second or two for a large vocabulary, once
            if self._tokenizer is None:
                self._tokenizer = LLTokenizer(
                    self._words,  # type: ignore[arg-type]  # it has what a TokenizerWrapper has
                    n_vocab=len(self._words.tokens),
                    eos_token=self._words.ends,
                )
        matcher = LLMatcher(self._tokenizer, form, log_level=0, limits=_limits())
        return Matcher(matcher, len(self._words.tokens))


class _Words:
    """A vocabulary as llguidance wants it."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, encode: Callable[[str], list[int]]) -> None:
        self.ends = [i for i, role in enumerate(vocabulary.roles) if role == Role.EOS]
        self.eos_token_id = self.ends[0]
        self.special_token_ids = [
            i
            for i, role in enumerate(vocabulary.roles)
            if role not in (Role.NORMAL, Role.BYTE, Role.UNUSED)
        ]
        self.tokens = list(vocabulary.tokens)
        for token in self.special_token_ids:
            self.tokens[token] = vocabulary.names[token].encode("utf-8", "replace")
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


class Matcher:
    """Where in its form one reply has come; one thread at a time.

    What may come next is computed in a thread of its own from `take` on, while the models compute
    the logits that it is for.
    """

    def __init__(self, matcher: Any, size: int) -> None:
        self._matcher = matcher
        self._mask = np.zeros((size + 31) // 32, np.int32)
        self._size = size
        self._forced: Future[list[int]] | None = None
        self._choice: Future[Choice] = _worker().submit(self._compute)

    def choice(self) -> Choice:
        """The tokens that may come next, or those that may not, whichever are fewer.

        Once the form is complete these are the tokens that end a reply. Raises UsageError where
        llguidance's limits are met, or no token of the vocabulary can go on.
        """
        found = self._choice.result()
        if error := self._matcher.get_error():
            told = "nothing can follow" if "NoExtension" in error else _one_line(error)
            raise UsageError(f"the reply's form cannot be kept here ({told})")
        if not len(found.ids) and not found.forbidden:
            raise UsageError("the reply's form allows none of the model's tokens here: widen it")
        return found

    def allowed(self) -> Ids:
        """The tokens that may come next, (n,) int32 in rising order. Raises as `choice` does."""
        found = self.choice()
        if not found.forbidden:
            return found.ids
        return np.delete(np.arange(self._size, dtype=np.int32), found.ids)

    def take(self, token: int) -> None:
        """The reply goes on with an allowed token."""
        self._choice.result()  # two threads at a time may not have llguidance's matcher
        self._matcher.consume_token(token)
        if self._forced is not None:  # before the mask, which takes longer and is needed later
            self._forced = _worker().submit(self._matcher.compute_ff_tokens)
        self._choice = _worker().submit(self._compute)

    def forced(self) -> Sequence[int]:
        """The tokens of the text that the form forces from here on, as the tokenizer has them.

        Often none. Where a text can be spelled in several ways the model may choose another one.
        """
        if self._forced is None:
            self._choice.result()
            self._forced = _worker().submit(self._matcher.compute_ff_tokens)
        return self._forced.result()

    def _compute(self) -> Choice:
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little", count=self._size)
        forbidden = int(np.count_nonzero(bits)) * 2 > self._size
        return Choice(np.flatnonzero(bits == 0 if forbidden else bits).astype(np.int32), forbidden)


@cache
def _worker() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="cmc-form")
