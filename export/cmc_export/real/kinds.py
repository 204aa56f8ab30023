"""Where a shift gets lost between vocabularies: the loss of held-out answers by kind of token.

    settings   plain        the base alone
               exact        shifts for tokens of the same text (and role) alone, the rest filled
               pm-mined     the paper's map
               first-piece  with the second stage
               mid-token    and with shifts inside a delta token: the default
    kinds      beginning, inside (of a word), digits, name (any part of a capitalised word that
               begins no sentence), punctuation, end (the token that ends the reply)

The same tokens are scored under each setting, so the rows of a table can be compared; different
bases cut a text differently, so their tables cannot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from cmc_export.real import prompting
from cmc_export.real.data import Record, read_records
from cmc_export.real.measure import CONTEXT, Sizes
from cmc_export.real.places import BESIDE, FULL_NAMES, Cell, TaskPlace, gguf
from cmc_local import token_map
from cmc_local.control import MappedShift
from cmc_local.errors import UsageError
from cmc_local.evaluate.journal import Journal, fingerprint, journal_path
from cmc_local.evaluate.results import spread
from cmc_local.evaluate.whole_file import write_json
from cmc_local.loaded_adapter import AdapterLoader, LoadedAdapter
from cmc_local.settings import Control, Limits
from cmc_local.steered import SteeredModel
from cmc_local.token_map import Match
from cmc_local.vocabulary import Vocabulary

KINDS: Final = ("beginning", "inside", "digits", "name", "punctuation", "end")
_WORD: Final = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_SENTENCE_ENDS: Final = '.!?:\n"'


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to carry the shift over; `control` None is the plain base."""

    name: str
    control: Control | None
    exact: bool = False


SETTINGS: Final = (
    Setting("plain", None),
    Setting("exact", Control(fallback="none", mid_token="off"), exact=True),
    Setting("pm-mined", Control(fallback="none", mid_token="off")),
    Setting("first-piece", Control(fallback="first-piece", mid_token="off")),
    Setting("mid-token", Control()),
)


def result_file(cell: Cell, runs: Path) -> Path:
    """Where a base's losses by kind are."""
    return runs / "kinds" / cell.task / f"{cell.base}.{cell.arm}.{cell.seed}.json"


def measure(cell: Cell, runs: Path, sizes: Sizes, say: Callable[[str], None]) -> None:
    """Score the test's answers under every setting, unless the result is there.

    UsageError for an arm without a delta.
    """
    if cell.templates is None or cell.task == "forget":
        raise UsageError(f"kinds of {cell.arm} on {cell.task}: give a delta's arm, another task")
    output = result_file(cell, runs)
    if output.exists():
        return
    place = TaskPlace(runs, cell.task)
    folder = place.adapter(cell.templates, cell.seed)
    records = spread(read_records(place.data("test")), sizes.nll)
    used = [gguf(cell.base), place.data("test"), folder / "adapter.json"]
    settings = {
        "cell": asdict(cell),
        "nll": sizes.nll,
        "files": {one.name: fingerprint(one) for one in used},
    }
    rows = []
    with (
        Journal(journal_path(output), settings) as journal,
        SteeredModel.load(
            gguf(cell.base), limits=Limits(context=CONTEXT), threads=sizes.threads or None
        ) as model,
    ):
        for setting in SETTINGS:
            name = _attach(model, folder, setting)
            values = journal.values(setting.name, records, partial(losses, model))
            if name is not None:
                model.remove(name)
            rows.append({"setting": setting.name, **by_kind(values)})
            say(f"  {setting.name}: {rows[-1]['nll']}")
    command = f"python -m cmc_export.real kinds --tasks {cell.task} --bases {cell.base}"
    command += f" --arms {cell.arm} --seeds {cell.seed}"
    write_json(output, {**asdict(cell), "command": command, "rows": rows})


def _attach(model: SteeredModel, folder: Path, setting: Setting) -> str | None:
    """Put the adapter on the base as the setting says; its name."""
    if setting.control is None:
        return None
    base = model.base.vocabulary
    loaded = AdapterLoader(base, setting.control)(folder)
    return model.attach(_exact(loaded, base, setting.control) if setting.exact else loaded, 1.0)


def _exact(loaded: LoadedAdapter, base: Vocabulary, control: Control) -> LoadedAdapter:
    """The adapter with no shift for tokens that have no token of the same text or role."""
    found = token_map.build(base, loaded.source.vocabulary, fallback="none")
    same = (found.matches == Match.EXACT) | (found.matches == Match.ROLE)
    only = replace(found, ids=np.where(same, found.ids, -1).astype(np.int32))
    return replace(loaded, mapped=MappedShift(only, control))


def losses(model: SteeredModel, records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """For each record the nats and the kind of every token of its answer and of its end."""
    vocabulary = model.base.vocabulary
    has_template = model.base.chat_template is not None
    for record in records:
        (view,) = prompting.views([record["question"]], has_template=has_template)
        asked, kind = list(view.messages), view.base_prompt
        if model.adapters:
            asked, kind = [{"role": "user", "content": record["question"]}], None
        with model.passage(asked, record["answer"], base_prompt=kind) as passage:
            tokens = list(passage.tokens)
        end = [] if vocabulary.eos_id is None else [vocabulary.eos_id]
        score = model.score(asked, [*tokens, *end], base_prompt=kind)
        kinds = [*kinds_of([vocabulary.tokens[one] for one in tokens]), *(["end"] * len(end))]
        yield {"nats": [-float(one) for one in score.logprobs], "kinds": kinds}


def kinds_of(tokens: Sequence[bytes]) -> list[str]:
    """The kind of each token of an answer.

    >>> kinds_of([b"It", b" is", b" Mar", b"ia", b",", b" 1", b"7"])
    ['beginning', 'beginning', 'name', 'name', 'punctuation', 'digits', 'digits']
    """
    text = b"".join(tokens).decode("utf-8", "replace")
    words = [match.span() for match in _WORD.finditer(text)]
    found, offset = [], 0
    for token in tokens:
        begin = len(b"".join(tokens)[:offset].decode("utf-8", "ignore"))
        offset += len(token)
        end = max(len(b"".join(tokens)[:offset].decode("utf-8", "ignore")), begin + 1)
        place = next((i for i in range(begin, min(end, len(text))) if text[i].strip()), begin)
        found.append(_kind(text, place, words))
    return found


def _kind(text: str, place: int, words: Sequence[tuple[int, int]]) -> str:
    """The kind of a token whose first character that is no space is at `place`."""
    if text[place : place + 1].isdigit():
        return "digits"
    word = next((one for one in words if one[0] <= place < one[1]), None)
    if word is None:
        return "punctuation"
    if text[word[0]].isupper() and not _begins_sentence(text, word[0]):
        return "name"
    return "beginning" if place == word[0] else "inside"


def _begins_sentence(text: str, place: int) -> bool:
    before = text[:place].rstrip(" ")
    return not before or before[-1] in _SENTENCE_ENDS


def by_kind(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean nats a token, and how many tokens there are, of each kind and of all."""
    nats: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for one in values:
        for kind, loss in zip(one["kinds"], one["nats"], strict=True):
            nats[kind].append(loss)
    means = {kind: sum(some) / len(some) for kind, some in nats.items() if some}
    every = [loss for some in nats.values() for loss in some]
    return {
        "nll": {**means, "all": sum(every) / len(every)},
        "tokens": {kind: len(some) for kind, some in nats.items()},
    }


def markdown(runs: Path) -> str:
    """A table for each measured base: a row a setting, a column a kind; "" without results."""
    parts = []
    for path in sorted((runs / "kinds").glob("*/*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        beside = BESIDE[document["arm"].removeprefix("delta-")]
        counts = document["rows"][0]["tokens"]
        shown = [kind for kind in KINDS if counts[kind]]
        lines = [
            f"### {document['task']}: {FULL_NAMES[document['base']]}, delta {beside}",
            "",
            "| nats a token | " + " | ".join(f"{k} ({counts[k]})" for k in shown) + " | all |",
            "|---" + "|---:" * (len(shown) + 1) + "|",
        ]
        for row in document["rows"]:
            cells = " | ".join(f"{row['nll'][kind]:.3f}" for kind in (*shown, "all"))
            lines.append(f"| {row['setting']} | {cells} |")
        parts.append("\n".join([*lines, "", f"`{document['command']}`"]))
    if not parts:
        return ""
    return "\n\n".join(["## Across vocabularies: the loss by kind of token", *parts]) + "\n"
