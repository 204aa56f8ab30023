from cmc_local.delta_tokenizer import DeltaPrompt, DeltaTokenizer

__all__ = ["DeltaPrompt", "DeltaTokenizer"]
