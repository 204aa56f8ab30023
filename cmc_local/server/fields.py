"""Fields of requests that this server does not have: one rule for all of them.

    without effect here (`user`, `store`, ...)        accepted
    would change the reply (`mirostat`, ...)          refused by name, unless it changes nothing
    any other                                         passed over, and named in the reply's notices

The fields that are honoured are those of `bodies.py`, `responses.py` and `messages.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cmc_local.server.errors import invalid, quoted

WITHOUT_EFFECT: Final = frozenset({
    *("user", "metadata", "store", "service_tier", "prediction", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention", "cache_prompt", "id_slot", "slot_id"),
    *("keep_alive", "timings_per_token", "return_tokens", "return_progress", "priority"),
    *("post_sampling_probs", "request_id", "include", "inference_geo", "betas", "cache_control"),
})  # fmt: skip
"""Accepted: they speak of accounts, caches, speed, or of what is told beside the text."""

NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    **dict.fromkeys(("mirostat", "dry_multiplier", "xtc_probability", "dynatemp_range"), (0,)),
    **dict.fromkeys(("min_tokens", "min_keep", "n_probs", "prompt_logprobs", "n_keep"), (0,)),
    **dict.fromkeys(("ignore_eos", "use_beam_search", "early_stopping", "background"), (False,)),
    **dict.fromkeys(("skip_special_tokens", "spaces_between_special_tokens"), (True,)),
    "include_stop_str_in_output": (False,),
    "t_max_predict_ms": (-1, 0),
    **dict.fromkeys(
        ("stop_token_ids", "bad_words", "allowed_token_ids", "samplers", "lora", "documents",
         "chat_template", "logits_processors", "images", "conversation", "mcp_servers",
         "container", "context_management"),
        (),
    ),
    "top_n_sigma": (-1, 0),
    "top_a": (0,),
    "tfs_z": (1,),
    "length_penalty": (1,),
    "reasoning_format": ("auto", "deepseek"),
    "add_generation_prompt": (True,),
    "verbosity": ("medium",),
    "truncate_prompt_tokens": (-1,),
}  # fmt: skip
"""Fields that would change the reply -> the values with which they do not."""
_NOTHING: Final[tuple[Any, ...]] = (None, "", [], {})


def check(unknown: Mapping[str, Any]) -> list[str]:
    """Notices about the fields that a body does not have.

    Raises Refusal for the first one that would change the reply.
    """
    notices = []
    for name, value in unknown.items():
        if value in _NOTHING or name in WITHOUT_EFFECT:
            continue
        if name not in NEUTRAL:
            notices.append(f"the field {quoted(name)} is not known here: it was passed over")
        elif not any(value == one for one in NEUTRAL[name]):
            raise invalid(f"{quoted(name)} cannot be honoured here: leave it out", name[:80])
    return notices
