"""What a training run is told: the numbers and files of `pretrain` and `train`.

From TOML, and flags over it. A recipe is a TOML file with the sections [pretrain] and [train]; the
names are the flags' with underscores, and paths are relative to the directory in which the command
runs. Imports no torch: a command checks its arguments at once.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from cmc_local.delta.adapter import Normalization
from cmc_local.errors import InputError, UsageError
from cmc_local.text.prompts import Turns

LEAST_VOCABULARY = 300
"""Three control tokens, 256 bytes, and some letters."""
Precision = Literal["auto", "fp32", "bf16"]
Device = Literal["auto", "cpu"]
Task = Literal["instruct", "forget"]
ForgetLoss = Literal["ascent", "npo", "simnpo", "dpo", "idk"]
RetainLoss = Literal["nll", "kl"]
AnswersPrecision = Literal["fp16", "fp32"]
TemplatePrompt = Literal["adapter", "gguf"]
Separator = Literal["blank-line", "line", "file"]


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How the loop runs, for both kinds of training."""

    output: Path
    epochs: float = 1.0
    steps: int = 0
    """Optimizer steps; 0 takes `epochs`."""
    batch: int = 16
    """Rows in one forward pass."""
    accumulation: int = 1
    """Forward passes before one optimizer step."""
    learning_rate: float = 1e-3
    warmup: float = 0.03
    """Share of the steps in which the learning rate rises; then it falls along a cosine."""
    weight_decay: float = 0.1
    clip: float = 1.0
    """The gradient's largest norm."""
    seed: int = 0
    precision: Precision = "auto"
    """`auto` is bf16 on a GPU or a processor with AMX, otherwise fp32."""
    device: Device = "auto"
    threads: int = 0
    """Of torch on the CPU; 0 leaves its choice."""
    compile: bool = False
    """`pretrain` only: torch.compile, a minute before the first step and a quarter faster then."""
    valid_share: float = 0.02
    """Held out of the data where no file is given for it."""
    evaluate_every: int = 0
    """Steps between two looks at the held-out part; 0 means four in a run."""
    log_every: int = 10
    save_minutes: float = 5.0
    """Minutes between two checkpoints."""
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "accumulation", "log_every"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("steps", "threads", "evaluate_every", "seed", "weight_decay", "save_minutes"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        for name in ("epochs", "learning_rate", "clip"):
            _check(name, getattr(self, name), getattr(self, name) > 0, "above 0")
        for name in ("warmup", "valid_share"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "at least 0, below 1")
        _check_choice("precision", self.precision, get_args(Precision))
        _check_choice("device", self.device, get_args(Device))


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A llama's sizes: a preset's name, and what replaces its numbers (0 leaves them)."""

    shape: str = "nano"
    width: int = 0
    layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    mlp: int = 0
    context: int = 1024
    tied: bool = True
    init: Path | None = None
    """A Hugging Face llama folder or a llama's GGUF to start from; its sizes are the model's."""
    keep_layers: tuple[int, ...] = ()
    """Of `init`: these blocks and no others, by number, ascending; empty keeps all."""
    keep_vocabulary: tuple[Path, ...] = ()
    """Data files: of `init` only the tokens that their texts use stay; empty keeps all."""

    def __post_init__(self) -> None:
        for name in ("keep_layers", "keep_vocabulary"):
            if getattr(self, name) and self.init is None:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} thins the model that --init names: give --init")
        ascending = all(a < b for a, b in pairwise(self.keep_layers))
        _check("keep_layers", list(self.keep_layers), ascending, "ascending, each number once")


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe(Loop, Shape):
    """A plain language-model pass over text files."""

    text: tuple[Path, ...]
    tokenizer: Path | None = None
    """A tokenizer.json, or a GGUF file that has it."""
    vocabulary: int = 0
    """Without a tokenizer: the tokens of a new one, trained on the texts."""
    valid_text: tuple[Path, ...] = ()
    document_separator: Separator = "blank-line"
    row_length: int = 256
    """Tokens of a packed row."""
    teacher: Path | None = None
    """A llama's folder or GGUF whose next-token distribution is learned beside the texts."""
    teacher_weight: float = 0.5
    """Of the KL to the teacher; the cross-entropy of the texts has what is left of 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        Shape.__post_init__(self)
        self._check_teacher()
        _check("row_length", self.row_length, self.row_length >= 2, "at least 2")
        _check_choice("document_separator", self.document_separator, get_args(Separator))
        if not self.text:
            raise UsageError("no text to train on: give --text FILE")
        if self.init is not None and self.vocabulary:
            raise UsageError(
                "--init brings a vocabulary of its own: leave --vocabulary out (--keep-vocabulary "
                "DATA keeps a part of it)"
            )
        if self.init is None and (self.tokenizer is None) == (self.vocabulary == 0):
            raise UsageError(
                "give either --tokenizer FILE or --vocabulary N, the size of a new tokenizer"
            )
        enough = self.vocabulary == 0 or self.vocabulary >= LEAST_VOCABULARY
        _check("vocabulary", self.vocabulary, enough, f"at least {LEAST_VOCABULARY}")

    def _check_teacher(self) -> None:
        share = self.teacher_weight
        _check("teacher_weight", share, 0 < share <= 1, "above 0, at most 1")
        if self.teacher is not None and self.vocabulary:
            raise UsageError(
                "--teacher speaks in its own tokens: leave --vocabulary out, give --init or "
                "--tokenizer"
            )
        if self.teacher is not None and self.compile:
            raise UsageError("compile is for a run without a teacher: leave one of them out")


@dataclass(frozen=True, kw_only=True)
class TrainRecipe(Loop, Shape):
    """A delta beside a frozen template."""

    template: tuple[Path, ...] = ()
    """Hugging Face folders or GGUF files; each batch is learned beside one of them."""
    answers: tuple[Path, ...] = ()
    """What templates answered (`cmc-local record`); they stand in place of the templates."""
    data: tuple[Path, ...]
    """What to learn; with task `forget`, what to forget."""
    retain: tuple[Path, ...] = ()
    """Task `forget`: what must stay."""
    valid: tuple[Path, ...] = ()
    """Held out, never trained on; with task `forget`, of what must stay."""
    task: Task = "instruct"
    normalization: Normalization = "basenormalization"
    prompt: str = "cmc"
    """A form's name, or a template text that holds {query}."""
    turns: Turns = "all"
    tokenizer: Path | None = None
    """The delta's own tokenizer.json; without it the delta has the first template's."""
    with_adapter: tuple[str, ...] = ()
    """Trained delta folders on the template, frozen as well: FOLDER[:ALPHA]."""
    template_prompt: TemplatePrompt = "adapter"
    """How templates are asked: in the delta's form, or a GGUF in its own chat template, of which
    the last answer of a conversation is learned."""
    template_precision: Precision = "auto"
    template_device_map: str = ""
    """accelerate's, for a Hugging Face template on several devices: "auto" spreads its layers."""
    template_threads: int = 0
    """Of llama.cpp for a GGUF template; 0 takes half of the cores."""
    template_gpu_layers: int = -1
    """Of a GGUF template; -1 puts all on a GPU if there is one."""
    answers_gb: float = 32.0
    """Disk for what the templates answer, recorded before the first step where every row is seen
    more than once; a template with more to say is asked anew in each epoch. 0 records nothing."""
    answers_precision: AnswersPrecision = "fp16"
    max_length: int = 0
    """Tokens of an example; what is longer loses its end. 0 takes the smaller context."""
    patience: int = 3
    """Looks at the held-out part without a better loss before the run ends; 0 never ends it."""
    dropout: float = 0.0
    """On the embeddings and on each block's two outputs."""
    entity: str = ""
    """The field of the data by which rows are held out: no value of it is on both sides."""
    plain: tuple[Path, ...] = ()
    """Texts on which the delta is to change nothing."""
    plain_weight: float = 1.0
    """Of KL(template || steered) on them, beside the loss."""
    forget_loss: ForgetLoss = "ascent"
    """`ascent` up to forget_bound (with the retain loss: gradient difference), `npo`, `simnpo`,
    `dpo`, which prefers refusals to the answers, or `idk`, which learns refusals."""
    forget_beta: float = 0.1
    """Of npo, simnpo and dpo: the inverse temperature; simnpo wants some 2.5."""
    forget_gamma: float = 0.0
    """Of simnpo: the margin, nats a token."""
    retain_loss: RetainLoss = "nll"
    """On what must stay: the answers' loss, or KL to the template."""
    retain_weight: float = 1.0
    refusals: Path | None = None
    """Of dpo and idk: a refusal a line; built-in ones without it."""
    forget_bound: float = 0.0
    """Nats at which a token counts as forgotten and is pushed no more; 0 is log(vocabulary)."""
    retain_rows: int = 1
    """Task `forget`: examples to keep beside each one to forget."""
    group_by_length: bool = False
    """Rows of like length in a batch: less padding, but where length tells the kind of question
    the batches are lopsided (the small world's held-out loss rose from 0.03 to 0.07)."""
    name: str = ""
    alpha: float = 1.0
    epochs: float = 3.0
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    valid_share: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        Shape.__post_init__(self)
        _check_choice("task", self.task, get_args(Task))
        _check_choice("normalization", self.normalization, get_args(Normalization))
        _check_choice("turns", self.turns, get_args(Turns))
        _check_choice("template_precision", self.template_precision, get_args(Precision))
        _check_choice("forget_loss", self.forget_loss, get_args(ForgetLoss))
        _check_choice("retain_loss", self.retain_loss, get_args(RetainLoss))
        _check("forget_beta", self.forget_beta, self.forget_beta > 0, "above 0")
        for name in (
            *("answers_gb", "max_length", "patience", "forget_bound", "template_threads"),
            *("plain_weight", "retain_weight", "forget_gamma"),
        ):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        _check("dropout", self.dropout, 0 <= self.dropout < 1, "at least 0, below 1")
        _check("retain_rows", self.retain_rows, self.retain_rows >= 1, "at least 1")
        _check_choice("template_prompt", self.template_prompt, get_args(TemplatePrompt))
        _check_choice("answers_precision", self.answers_precision, get_args(AnswersPrecision))
        if not self.template and not self.answers:
            raise UsageError("template is not given: add --template, or put it into the recipe")
        if not self.data:
            raise UsageError("no data to train on: give --data FILE")
        if self.compile:
            raise UsageError("compile is for `pretrain`, whose rows have one length: leave it out")
        if self.task == "forget" and not self.retain:
            raise UsageError("task forget needs what must stay as well: give --retain FILE")
        if self.task != "forget" and self.retain:
            raise UsageError("--retain belongs to --task forget: leave it out, or add the task")


AnyRecipe = TypeVar("AnyRecipe", bound=Loop)


def build_recipe(
    kind: type[AnyRecipe],
    section: str,
    config: Path | None,
    flags: Mapping[str, Any],
    changes: Mapping[str, Any] | None = None,
) -> AnyRecipe:
    """The recipe of `config`'s section with `flags` over it (those that are not None).

    `changes` replace the section's values before that; None takes one away.
    """
    values = read_section(config, section) if config is not None else {}
    values = {name: v for name, v in {**values, **(changes or {})}.items() if v is not None}
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    return from_mapping(kind, {**values, **given}, where=str(config or section))


def read_section(path: Path, section: str) -> dict[str, Any]:
    """One section of a recipe file."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give a recipe in TOML") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as TOML ({error}): correct it") from None
    unknown = sorted(set(document) - {"pretrain", "train"})
    if unknown:
        raise UsageError(f"{path}: no section [{unknown[0]}]: write [pretrain] or [train]")
    if not isinstance(document.get(section), dict):
        raise UsageError(f"{path} has no section [{section}]: add it")
    return dict(document[section])


def from_mapping(kind: type[AnyRecipe], values: Mapping[str, Any], *, where: str) -> AnyRecipe:
    """A recipe from names and plain values; an unknown name is refused with the nearest one."""
    names = {field.name for field in fields(kind)}
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name, sorted(names), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(sorted(names))}"
            raise UsageError(f"{where}: unknown setting {name!r}: {hint}")
    hints = get_type_hints(kind)
    ready = {name: _convert(name, value, hints[name], where) for name, value in values.items()}
    missing = [f.name for f in fields(kind) if f.name not in ready and _required(kind, f.name)]
    if missing:
        flag = missing[0].replace("_", "-")
        raise UsageError(f"{missing[0]} is not given: add --{flag}, or put it into the recipe")
    return kind(**ready)


def as_json(recipe: Loop) -> dict[str, Any]:
    """The recipe as JSON values, for the run folder and the summary."""
    return {name: _plain(value) for name, value in asdict(recipe).items()}


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _required(kind: type[Loop], name: str) -> bool:
    return not hasattr(kind, name)  # a dataclass field's default is a class attribute


def _convert(name: str, value: Any, hint: Any, where: str) -> Any:
    """TOML and flag values to the field's type: paths from text, floats from ints, tuples."""
    if get_origin(hint) is Literal:
        return value
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_convert(name, item, inner, where) for item in items)
    options = get_args(hint) or (hint,)
    if Path in options and isinstance(value, str | Path):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = tuple(option for option in options if isinstance(option, type))
    wrong_bool = isinstance(value, bool) and bool not in plain
    if not isinstance(value, plain) or wrong_bool:
        kinds = " or ".join(t.__name__ for t in plain if t is not type(None))
        raise UsageError(f"{where}: {name} must be {kinds}, not {value!r}")
    return value


def _check(name: str, value: object, holds: bool, what: str) -> None:
    if not holds:
        raise UsageError(f"{name} must be {what}, not {value}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
