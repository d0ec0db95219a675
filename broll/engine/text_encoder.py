"""Words to tokens to features: umT5's encoder, from transformers, with WAN's own text cleaning.

The official code pads every prompt to 512 tokens, masks the padding inside the encoder, cuts the result to
the real length and pads it again with zeros. Masked padding changes nothing, so the encoder runs on the real
tokens only; what the transformer is given is the same (tests/parity/test_text_encoder.py).

    umT5        https://arxiv.org/abs/2304.09151
    cleaning    wan/modules/tokenizers.py, `whitespace_clean(basic_clean(text))`
"""

import html
import re
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from broll.engine.config import TextConfig


def clean(text: str) -> str:
    """Repair broken encodings, unescape HTML twice, collapse white space."""
    import ftfy  # noqa: PLC0415  who has tokens already needs none

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


def umt5(config: TextConfig) -> UMT5EncoderModel:
    """An encoder with these numbers, its weights not yet set."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            d_kv=config.d_kv,
            d_ff=config.d_ff,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            relative_attention_num_buckets=32,
            relative_attention_max_distance=128,
            feed_forward_proj="gated-gelu",
            layer_norm_epsilon=1e-6,
            dropout_rate=0.0,
        )
    ).eval()


class TextEncoder:
    """`encoder(prompt)` gives the features of its real tokens, at most `text_len` of them."""

    def __init__(self, model: UMT5EncoderModel, tokenizer: PreTrainedTokenizerBase, text_len: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.text_len = text_len

    def token_ids(self, prompt: str) -> list[int]:
        """Ids of the cleaned prompt with its end mark, cut to `text_len`."""
        ids = self.tokenizer(clean(prompt), truncation=True, max_length=self.text_len)["input_ids"]
        return list(ids)

    def __call__(self, prompt: str) -> Float[Tensor, "1 l c"]:
        ids = torch.tensor([self.token_ids(prompt)], device=self.model.device)
        return self.model(input_ids=ids).last_hidden_state.float()


class RememberedText:
    """The features of these prompts, for who lets the encoder go: it may be larger than all that comes after it."""

    def __init__(self, encoder: TextEncoder, prompts: Iterable[str]) -> None:
        self.tokenizer, self.text_len = encoder.tokenizer, encoder.text_len
        with torch.inference_mode():
            self._features = {prompt: encoder(prompt) for prompt in prompts}

    def __call__(self, prompt: str) -> Float[Tensor, "1 l c"]:
        return self._features[prompt]
