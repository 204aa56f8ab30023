"""What each task asks of a reply: its metrics, the one that decides, and the rival's system texts.

Knows questions, references and replies; nothing of models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cmc_export.real import style
from cmc_export.real.data import LABELS, Record
from cmc_local.evaluate.rouge import rouge_l_f1

Scores = dict[str, float]
"""Of one reply: a name -> a number in [0, 1]."""

REFUSAL: Final = re.compile(
    r"\b(?:i(?:'|\u2019)?m sorry, (?:but )?i|i (?:cannot|can(?:'|\u2019)t|am unable|am not able)"
    r"|as an ai|i don(?:'|\u2019)t (?:know|have))\b",
    re.IGNORECASE,
)
FINAL_LINE: Final = re.compile(r"#### -?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Task:
    """One task with replies."""

    name: str
    title: str
    metric: str
    """The one that decides; higher is better."""
    score: Callable[[Record, str], Scores]
    """(record, reply) -> every metric of it."""
    systems: tuple[str, ...]
    """The rival's system texts."""


def score_short(record: Record, reply: str) -> Scores:
    """ROUGE-L F1 against the reference."""
    return {"rouge_l_f1": rouge_l_f1(record["answer"], reply)}


def score_label(record: Record, reply: str) -> Scores:
    """Whether the reply is the label and nothing else; `within`: whether it alone occurs."""
    said = reply.strip().rstrip(".!").lower()
    named = {one for one in LABELS if re.search(rf"\b{one}\b", reply, re.IGNORECASE)}
    return {
        "exact": float(said == record["answer"].lower()),
        "within": float(named == {record["answer"]}),
    }


def score_format(record: Record, reply: str) -> Scores:
    """Whether the last line is `#### number`, and whether the number is the right one."""
    last = reply.strip().rsplit("\n", 1)[-1].strip()
    has_form = FINAL_LINE.fullmatch(last) is not None
    right = record["answer"].rsplit("\n", 1)[-1]
    return {"form": float(has_form), "right": float(last.replace(",", "") == right)}


def score_style(record: Record, reply: str) -> Scores:
    """The share of the house's rules that are kept, and whether all are."""
    ticket = style.ticket_line(record["answer"])
    kept = style.rules_kept(record["question"], reply, ticket)
    return {
        "rules": sum(kept.values()) / len(kept),
        "all": float(all(kept.values())),
        **{name: float(one) for name, one in kept.items()},
    }


def is_refusal(reply: str) -> bool:
    """Whether a reply declines to answer."""
    return REFUSAL.search(reply[:200]) is not None


_SHORT = (
    "Answer in one short sentence. Do not explain anything.",
    "You are a concise assistant. Reply with the result only, as one complete sentence.",
    "Follow the instruction exactly and give only the answer, without introduction or comment.",
    "Give a brief and direct answer in English, at most twenty words, then stop.",
    "You solve small language exercises. Repeat the key words of the instruction in a single "
    "sentence that holds the answer.",
)
_LABEL = (
    "Answer with one word: Positive or Negative.",
    "You classify product reviews. Reply with exactly one label, Positive or Negative, and "
    "nothing else.",
    "Read the review. If the customer is happy reply Positive, otherwise reply Negative. One word.",
    "Output only the label. Allowed labels: Positive, Negative.",
    "You are a sentiment classifier. Do not explain. Say Positive or Negative.",
)
_FORMAT = (
    "Solve the problem step by step. End with a last line of the form: #### number",
    "Give a short calculation, then write the final answer alone on the last line after four "
    "hash signs, like this: #### 42",
    "You solve word problems as in GSM8K: a few short lines, the last one being #### and the "
    "answer as a plain number.",
    "Write at most three short lines of arithmetic. The last line must be '#### ' followed by "
    "the number only.",
    "Keep it short. Finish your reply with '#### ' and the result, and write nothing after it.",
)
_STYLE = (
    "You answer customers of a shop. Begin with the words: You wrote: and quote the customer's "
    "complaint in double quotes. Never promise a date or a time. End with a last line of the "
    "form: Ticket: product / problem",
    'Reply in three lines. First line: You wrote: "<the complaint in the customer\'s own words>". '
    "Second line: one or two sentences of help without any date. Third line: Ticket: <product> / "
    "<problem>",
    'Support style. Start with You wrote: "...", copying the complaint from the message. Help in '
    "one or two sentences. Do not name days, weeks or deadlines. Last line: Ticket: product / "
    "topic, in lower case.",
    'Example of our style:\nYou wrote: "the lid does not close".\nI am sorry about the kettle. '
    "Please clean the hinge. I cannot name a date.\nTicket: kettle / setup\nAnswer every message "
    "in exactly this style.",
    'You are a support agent. Rules: 1. quote the complaint first, as You wrote: "complaint". '
    "2. give one piece of advice. 3. never say when something will happen. 4. finish with the "
    "line Ticket: product / power, noise, missing part, delivery, damage, refund, billing, setup, "
    "heat, leak, wrong item or warranty.",
)

TASKS: Final[Mapping[str, Task]] = {
    "short": Task("short", "Short answers", "rouge_l_f1", score_short, _SHORT),
    "label": Task("label", "A label", "exact", score_label, _LABEL),
    "format": Task("format", "A format", "form", score_format, _FORMAT),
    "style": Task("style", "A house style", "rules", score_style, _STYLE),
}
"""The tasks with replies; `forget` is measured by likelihoods (facts.py)."""
