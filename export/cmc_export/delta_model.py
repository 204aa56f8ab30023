"""The delta in PyTorch: transformers' LlamaForCausalLM in small shapes, and its checkpoint folder.

A checkpoint of ours is a Hugging Face llama folder (config.json, *.safetensors, tokenizer.json)
with a cmc.json beside it that holds what such a folder cannot say: CheckpointInfo. A folder
without cmc.json is any Hugging Face llama, and serves as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel
from transformers import LlamaForCausalLM as PlainLlama
from transformers.utils import logging as transformers_logging

from cmc_local.delta.adapter import DeltaShape, Normalization, TemplateName
from cmc_local.errors import InputError, UsageError
from cmc_local.text.prompts import PromptForm, Turns

CHECKPOINT_FILE = "cmc.json"
DEFAULT_CONTEXT = 1024
HEAD_STEP = 16
"""ONNX Runtime's attention takes heads of a multiple of this."""

# (width, layers, heads, mlp); 15m to 110m are the paper's, with 32,000 tokens and tied embeddings.
PRESETS: Mapping[str, tuple[int, int, int, int]] = {
    "nano-s": (96, 2, 3, 256),
    "nano": (128, 3, 4, 344),
    "nano-l": (192, 4, 6, 512),
    "15m": (288, 6, 6, 768),
    "42m": (512, 8, 8, 1376),
    "110m": (768, 12, 12, 2048),
}


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What cmc.json says of a trained delta; `training` is a summary for people (JSON values)."""

    name: str
    prompt: PromptForm
    turns: Turns = "all"
    normalization: Normalization = "basenormalization"
    alpha: float = 1.0
    template: TemplateName = field(default_factory=TemplateName)
    training: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of cmc.json."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> CheckpointInfo:
        """The inverse of `to_json`; raises InputError on anything else."""
        try:
            document = json.loads(text)
            document["prompt"] = PromptForm(**document["prompt"])
            document["template"] = TemplateName(**document.get("template", {}))
            info = cls(**document)
        except (ValueError, TypeError, KeyError, UsageError) as error:
            raise InputError(f"{CHECKPOINT_FILE} cannot be read ({error}): train again") from None
        if info.normalization not in get_args(Normalization) or info.turns not in get_args(Turns):
            raise InputError(
                f"{CHECKPOINT_FILE} has normalization {info.normalization!r} and turns "
                f"{info.turns!r}: one of {get_args(Normalization)} and of {get_args(Turns)}"
            )
        return info

    def save(self, folder: Path) -> None:
        """Write cmc.json into a checkpoint folder."""
        (folder / CHECKPOINT_FILE).write_text(self.to_json(), encoding="utf-8")


def read_info(folder: Path) -> CheckpointInfo | None:
    """The checkpoint's cmc.json, None where there is none."""
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        return None
    try:
        return CheckpointInfo.from_json(path.read_bytes())
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None


class KeptPositions:
    """For a causal language model: it can be asked for some positions only.

    Data-parallel training sees a model through its `forward` alone, so what it is asked for has to
    go through there.
    """

    def forward(self, *args: Any, keep: Tensor | None = None, **more: Any) -> Any:
        """As ever, or with `keep` (B, T) bool the logits (N, V) of these positions, row by row.

        The hidden states are gathered before the output head: other positions cost no logits.
        """
        if keep is None:
            return super().forward(*args, **more)  # type: ignore[misc]
        model: Any = self
        hidden = model.model(*args, use_cache=False, **more).last_hidden_state
        return model.lm_head(hidden[keep])


class LlamaForCausalLM(KeptPositions, PlainLlama):  # type: ignore[misc]
    """A llama of which some positions can be asked; its checkpoints are those of any llama."""


def shrink(model: PreTrainedModel) -> None:
    """Hold the matrices that do not learn in bf16, as autocast multiplies them in any case.

    It would turn a frozen float32 matrix into bf16 again at every use. Embeddings stay as they are:
    what is looked up in them is not multiplied but goes on as it stands.
    """
    embeddings = model.get_input_embeddings().weight
    for weight in model.parameters():
        if weight.ndim == 2 and not weight.requires_grad and weight is not embeddings:
            weight.data = weight.data.to(torch.bfloat16)


def gathered_logits(model: Any, ids: Tensor, keep: Tensor, vocabulary: int) -> Tensor:
    """A delta's logits at the kept positions: (B, T) ids, (B, T) bool -> (N, V) float32."""
    logits: Tensor = model(input_ids=ids, keep=keep)
    return logits[:, :vocabulary].float()


def preset(
    name: str,
    *,
    vocabulary: int,
    context: int = DEFAULT_CONTEXT,
    width: int | None = None,
    layers: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    mlp: int | None = None,
) -> DeltaShape:
    """A named shape for a vocabulary; what is given by keyword replaces the preset's."""
    if name not in PRESETS:
        raise UsageError(f"no delta preset {name!r}: choose one of {', '.join(PRESETS)}")
    preset_width, preset_layers, preset_heads, preset_mlp = PRESETS[name]
    n_heads = heads or preset_heads
    final_width = width or preset_width
    if final_width % n_heads:
        raise UsageError(f"width {final_width} is no multiple of {n_heads} heads: change one")
    return DeltaShape(
        vocabulary=vocabulary,
        width=final_width,
        layers=layers or preset_layers,
        heads=n_heads,
        kv_heads=kv_heads or n_heads,
        head_dim=final_width // n_heads,
        mlp=mlp or preset_mlp,
        context=context,
    )


def build(
    shape: DeltaShape,
    *,
    tied: bool = True,
    bos_id: int | None = None,
    eos_id: int | None = None,
    seed: int | None = None,
) -> LlamaForCausalLM:
    """A new delta with random weights, float32; `seed` makes them repeatable."""
    if shape.heads % shape.kv_heads:
        raise UsageError(f"{shape.heads} heads do not share {shape.kv_heads} kv heads evenly")
    if shape.head_dim % HEAD_STEP:
        raise UsageError(
            f"heads of {shape.head_dim} are no multiple of {HEAD_STEP}, which the exported graph's "
            "attention asks for: change the width or the heads"
        )
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        bos_token_id=bos_id,
        eos_token_id=eos_id,
    )
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def shape_of(config: LlamaConfig) -> DeltaShape:
    """The sizes of a Hugging Face llama."""
    heads = int(config.num_attention_heads)
    return DeltaShape(
        vocabulary=int(config.vocab_size),
        width=int(config.hidden_size),
        layers=int(config.num_hidden_layers),
        heads=heads,
        kv_heads=int(config.num_key_value_heads or heads),
        head_dim=int(config.head_dim or config.hidden_size // heads),
        mlp=int(config.intermediate_size),
        context=int(config.max_position_embeddings),
    )


def load(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """A Hugging Face llama folder's model, in eval mode; safetensors only, nothing is executed.

    Raises InputError for a folder of another architecture, a pickle, or missing weights.
    """
    path = Path(folder)
    _check_folder(path)
    with quiet_transformers():
        try:
            model, report = LlamaForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:  # safetensors, transformers and json each have their own
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise InputError(f"{path} cannot be loaded ({reason}): copy it again") from None
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if report.get(what):
            names = ", ".join(sorted(str(key) for key in report[what])[:3])
            raise InputError(f"{path} has {what.replace('_', ' ')} ({names}): not a llama delta")
    return model.eval()


def _check_folder(path: Path) -> None:
    config = path / "config.json"
    if not config.is_file():
        raise InputError(f"{path} has no config.json: give a Hugging Face llama folder")
    try:
        document = json.loads(config.read_bytes())
    except ValueError:
        raise InputError(f"{config} is not JSON: copy it again") from None
    kind = document.get("model_type") if isinstance(document, dict) else None
    if kind != "llama":
        raise InputError(f"{config} says model_type {kind!r}: a delta is a `llama`")
    if any(path.glob("*.safetensors")):
        return
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in path.glob(pattern))
    if pickles:
        raise InputError(
            f"{path / pickles[0]} is a pickle, which can run code when it is read: where you trust "
            'it, convert it with `python -c "from transformers import LlamaForCausalLM as L; '
            f"L.from_pretrained('{path}').save_pretrained('{path}-safetensors')\"`"
        )
    raise InputError(f"{path} has no *.safetensors: give a folder with the delta's weights")


class quiet_transformers:
    """No load report, no progress bar: what is wrong is said by an error of ours."""

    def __enter__(self) -> None:
        self._level = transformers_logging.get_verbosity()
        self._bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *exc: object) -> None:
        transformers_logging.set_verbosity(self._level)
        if self._bars:
            transformers_logging.enable_progress_bar()
