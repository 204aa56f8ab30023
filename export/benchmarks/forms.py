"""Forms of replies, counted: are finished replies valid, and what does a mask cost?

    CMC_SCHEMAS=FOLDER python export/benchmarks/forms.py schemas [--replies 20] [--tokens 300]
    python export/benchmarks/forms.py masks model.gguf ...
    python export/benchmarks/forms.py speed model.gguf [adapter]

`schemas` writes replies of a bundled model at temperature 1.5 under each schema and validates what
finished with `jsonschema`: those of docs and bug reports below, the usual shapes of Pydantic and
zod, and, where CMC_SCHEMAS names a checkout of the official JSON-Schema-Test-Suite, every schema of
its draft 2020-12 that has a valid instance. It ends with 1 if a finished reply is not valid, or if
none of a schema's replies finishes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any

import jsonschema
import numpy as np

from cmc_local import Limits, Sampling, SteeredModel, UsageError, bundled
from cmc_local.base.model import BaseModel
from cmc_local.text.forms import form_of
from cmc_local.text.vocabulary import Role

Schema = Any
_FORMATS = jsonschema.FormatChecker()
_TIME = re.compile(r"\d\d:\d\d:\d\d(\.\d+)?([zZ]|[+-]\d\d:\d\d)")


@_FORMATS.checks("time")
def _is_time(value: object) -> bool:
    """RFC 3339's time, which has an offset; `jsonschema` alone takes one without."""
    return not isinstance(value, str) or _TIME.fullmatch(value) is not None


def thing(**properties: Schema) -> Schema:
    """An object with these properties, all of them required."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def own() -> Iterator[tuple[str, Schema]]:
    """What bug reports of other programs are about, and what libraries make of types."""
    small = {"type": "integer", "minimum": 0, "maximum": 9}
    color = {"enum": ["red", "blue"]}
    kinds: dict[str, Schema] = {
        "enum with null": {"type": ["string", "null"], "enum": ["red", "blue", None]},
        "allOf of a reference": {"allOf": [{"$ref": "#/$defs/Color"}]},
        "pattern alternatives": {"type": "string", "pattern": "^[a-z]{1,9}$|^[0-9]{1,9}$"},
        "beyond ASCII": {"enum": ["👍", "👎", "é", "東京"]},
        "bounds": {"type": "integer", "minimum": 1, "maximum": 5},
        "exclusive bounds": {"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 3},
        "multiple of": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 50},
        "number bounds": {"type": "number", "minimum": 0, "maximum": 1},
        "constant with quotes": {"const": 'say "hi"'},
        "constant object": {"const": {"a": [1, None, True]}},
        "digits": {"type": "string", "pattern": r"^\d{5}$"},
        "phone": {"type": "string", "pattern": r"^\(?\d{3}\)?-\d{4}$"},
        "lengths": {"type": "string", "minLength": 2, "maxLength": 6},
        "long string": {"type": "string", "maxLength": 5000, "pattern": "^[a-c]{1,4}$"},
        "two of a list": {"type": "array", "items": small, "minItems": 2, "maxItems": 2},
        "tuple": {"type": "array", "prefixItems": [small, color], "items": False, "minItems": 2},
        "map": {"type": "object", "additionalProperties": small, "maxProperties": 3},
        "optional": {"anyOf": [small, {"type": "null"}], "default": None},
        "union": {"anyOf": [thing(kind={"const": "a"}, x=small), thing(kind={"const": "b"})]},
        "oneOf of constants": {"oneOf": [{"const": 1}, {"const": "two"}]},
        "boolean": {"type": "boolean"},
        "null": {"type": "null"},
        **{
            f"format {name}": {"type": "string", "format": name}
            for name in ("date", "time", "date-time", "uuid", "ipv4", "email", "duration")
        },
    }
    defs = {"$defs": {"Color": color}}
    for name, schema in kinds.items():
        yield name, {**schema, **defs}
        yield f"{name}, required property", {**thing(value=schema), **defs}
        optional = {"type": "object", "properties": {"value": schema, "more": small}}
        yield f"{name}, optional property", {**optional, **defs}
        listed = {"type": "array", "items": schema, "minItems": 1, "maxItems": 3}
        yield f"{name}, in a list", {**listed, **defs}
        strict = {**thing(a=schema, b=schema), "additionalProperties": False}
        yield f"{name}, strict", {**strict, **defs}
    node = thing(value=small, next={"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]})
    yield "recursive model", {"$ref": "#/$defs/Node", "$defs": {"Node": node}}
    tree = thing(name=color, children={"type": "array", "items": {"$ref": "#"}, "maxItems": 2})
    yield "tree of itself", tree
    yield "properties named as keywords", thing(properties=small, enum=color, required=small)


def official() -> Iterator[tuple[str, Schema]]:
    """The official suite's schemas of draft 2020-12 with a valid instance."""
    folder = os.environ.get("CMC_SCHEMAS")
    if folder is None:
        return
    for path in sorted(Path(folder, "tests", "draft2020-12").glob("*.json")):
        for number, group in enumerate(json.loads(path.read_text(encoding="utf-8"))):
            if any(test["valid"] for test in group["tests"]):
                yield f"{path.stem} {number}: {group['description']}", group["schema"]


def schemas(replies: int, tokens: int) -> int:
    """Every schema: refused, or so many of its replies finished; the exit code."""
    refused = wrong = endless = kept = 0
    with SteeredModel.load(bundled.base(), limits=Limits(context=1024)) as model:
        for name, schema in (*own(), *official()):
            try:
                text = json.dumps(schema)
                form_of(Sampling(json_schema=text))
                found = [_reply(model, text, seed, tokens) for seed in range(replies)]
            except UsageError as error:
                refused += 1
                print(f"refused   {name}: {error}")
                continue
            finished = [one for one in found if one is not None]
            invalid = [told for one in finished if (told := _wrong(one, schema)) is not None]
            wrong += bool(invalid)
            endless += not finished
            kept += not invalid and bool(finished)
            sign = "INVALID" if invalid else "kept" if finished else "NO END"
            print(f"{sign:9} {len(finished):3} of {replies} finished  {name}", *invalid[:1])
    print(f"{kept} kept, {refused} refused, {wrong} with an invalid reply, {endless} without end")
    return int(wrong or endless)


def _reply(model: SteeredModel, schema: str, seed: int, tokens: int) -> str | None:
    sampling = Sampling(
        json_schema=schema, temperature=1.5, seed=seed, max_tokens=tokens, top_k=0, top_p=1, min_p=0
    )
    reply = model.generate("Tell me.", sampling)
    return reply.text if reply.finish_reason == "stop" else None


def _wrong(reply: str, schema: Schema) -> str | None:
    # Decimals, since 4.39 / 0.0001 is no whole number of floats.
    exact = json.loads(json.dumps(schema), parse_float=Decimal)
    try:
        value = json.loads(reply, parse_float=Decimal)
        jsonschema.Draft202012Validator(exact, format_checker=_FORMATS).validate(value)
    except (ValueError, jsonschema.ValidationError) as error:
        return f"{reply!r}: {str(error).splitlines()[0]}"
    return None


def masks(paths: list[str]) -> int:
    """Milliseconds of a mask on real vocabularies, over random replies under the own schemas."""
    for path in paths:
        with BaseModel(path, context=64) as base:
            begun = time.perf_counter()
            base.forms.matcher(form_of(Sampling(regex="a")) or "")
            made = time.perf_counter() - begun
            spent: list[float] = []
            for _, schema in own():
                try:
                    spent += _mask_seconds(base, schema)
                except UsageError:
                    continue
            taken = np.array(spent) * 1e3
            p50, p99 = np.percentile(taken, (50, 99))
            told = f"{Path(path).name}: {len(base.vocabulary)} tokens, once {made:.2f} s"
            print(f"{told}; {len(taken)} masks, ms: {p50=:.3f} {p99=:.3f} max={taken.max():.3f}")
    return 0


def _mask_seconds(base: BaseModel, schema: Schema, most: int = 40) -> Iterator[float]:
    matcher = base.forms.matcher(form_of(Sampling(json_schema=schema)) or "")
    draw = np.random.default_rng(0)
    matcher.allowed()
    for _ in range(most):
        token = int(draw.choice(matcher.allowed()))
        if not base.vocabulary.tokens[token]:
            return
        begun = time.perf_counter()
        matcher.take(token)
        matcher.allowed()
        yield time.perf_counter() - begun


def speed(path: str, adapter: str | None, rounds: int = 5, tokens: int = 100) -> int:
    """Tokens a second with a schema and without, in turn."""
    schema = {"type": "string", "minLength": 2000}
    forms = {"without": Sampling(temperature=0, max_tokens=tokens, logit_bias=())}
    forms["with"] = Sampling(temperature=0, max_tokens=tokens, json_schema=schema)
    found: dict[str, list[float]] = {name: [] for name in forms}
    question = "Write a long story about a lighthouse, without an end."
    with SteeredModel.load(path, [adapter] if adapter else []) as model:
        roles = model.base.vocabulary.roles
        ends = tuple((i, -np.inf) for i, role in enumerate(roles) if role == Role.EOS)
        forms["without"] = Sampling(temperature=0, max_tokens=tokens, logit_bias=ends)
        for name in (*forms, *(name for _ in range(rounds) for name in forms)):
            timings = model.generate(question, forms[name]).timings
            seconds = timings.total_seconds - timings.prompt_seconds
            found[name].append(timings.generated_tokens / seconds)
    pace = {name: median(some[1:]) for name, some in found.items()}
    print(
        f"{Path(path).name}: {pace['without']:.1f} tokens/s without, {pace['with']:.1f} with a "
        f"schema: {pace['with'] / pace['without']:.3f}"
    )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("schemas", "masks", "speed"))
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--replies", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=300)
    given = parser.parse_args()
    if given.what == "schemas":
        return schemas(given.replies, given.tokens)
    if given.what == "masks":
        return masks(given.paths)
    return speed(given.paths[0], given.paths[1] if len(given.paths) > 1 else None)


if __name__ == "__main__":
    sys.exit(main())
