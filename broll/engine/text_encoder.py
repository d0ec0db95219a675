"""Words to tokens to features: umT5's encoder, from transformers, with WAN's own text cleaning.

The official code pads every prompt to 512 tokens, masks the padding inside the encoder, cuts the result to
the real length and pads it again with zeros. Masked padding changes nothing, so the encoder runs on the real
tokens only; what the transformer is given is the same (tests/parity/test_text_encoder.py).

    TextEncoder       computes
    KeptText          computes what is not kept; the same bits, since what is kept is named by all that it depends on
    RememberedText    has the features of some prompts, and no encoder: that may be larger than all that comes after it

    umT5        https://arxiv.org/abs/2304.09151
    cleaning    wan/modules/tokenizers.py, `whitespace_clean(basic_clean(text))`
"""

import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from broll.engine.config import TextConfig

# transformers' PreTrainedTokenizerBase. Here and below it is imported by who needs it: it takes seconds, and where
# features are kept (`recalled`) nobody needs it.
Tokenizer = Any


def clean(text: str) -> str:
    """Repair broken encodings, unescape HTML twice, collapse white space."""
    import ftfy  # noqa: PLC0415  who has tokens already needs none

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


def umt5(config: TextConfig) -> Any:
    """A UMT5EncoderModel with these numbers, its weights not yet set."""
    with torch.device(
        "cpu"
    ):  # who is the first to ask makes a module on the meta device; others share what is imported
        from transformers import UMT5Config, UMT5EncoderModel  # noqa: PLC0415

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

    def __init__(self, model: Any, tokenizer: Tokenizer, text_len: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.text_len = text_len

    def token_ids(self, prompt: str) -> list[int]:
        """Ids of the cleaned prompt with its end mark, cut to `text_len`."""
        ids = self.tokenizer(clean(prompt), truncation=True, max_length=self.text_len)["input_ids"]
        return list(ids)

    def count(self, prompt: str) -> int:
        """Its tokens, also those that would be cut off."""
        return len(self.tokenizer(clean(prompt))["input_ids"])

    def __call__(self, prompt: str) -> Float[Tensor, "1 l c"]:
        ids = torch.tensor([self.token_ids(prompt)], device=self.model.device)
        return self.model(input_ids=ids).last_hidden_state.float()


@runtime_checkable
class Kept(Protocol):
    """Where features outlive the process that computed them. What cannot be read, or kept, is no error."""

    def find(self, name: str) -> Tensor | None: ...

    def keep(self, name: str, features: Tensor) -> None: ...


@dataclass(frozen=True)
class Known:
    """What is kept of one encoder. `facts`: all that its features depend on, but the prompt."""

    kept: Kept
    facts: str

    def find(self, prompt: str) -> Tensor | None:
        return self.kept.find(self._name(prompt))

    def keep(self, prompt: str, features: Tensor) -> None:
        self.kept.keep(self._name(prompt), features)

    def _name(self, prompt: str) -> str:
        return f"{self.facts}\n{clean(prompt)}"


class KeptText:
    """An encoder that is asked only for what is not kept. What is too long for it is not kept: it is refused."""

    def __init__(self, encoder: TextEncoder, known: Known) -> None:
        self._encoder, self._known = encoder, known
        self.model, self.tokenizer, self.text_len = encoder.model, encoder.tokenizer, encoder.text_len
        self.token_ids, self.count = encoder.token_ids, encoder.count

    def __call__(self, prompt: str) -> Float[Tensor, "1 l c"]:
        found = self._known.find(prompt)
        if found is not None:
            return found.to(self.model.device)
        features = self._encoder(prompt)
        if self.count(prompt) <= self.text_len:
            self._known.keep(prompt, features)
        return features


class RememberedText:
    """The features of these prompts, and of no others; and how many tokens each has."""

    def __init__(self, features: Mapping[str, Tensor], counts: Mapping[str, int]) -> None:
        self._features, self._counts = dict(features), dict(counts)

    def count(self, prompt: str) -> int:
        return self._counts[prompt]

    def __call__(self, prompt: str) -> Float[Tensor, "1 l c"]:
        return self._features[prompt]


Words = TextEncoder | KeptText | RememberedText


def remembered(encoder: TextEncoder | KeptText, prompts: Iterable[str]) -> RememberedText:
    """For who lets the encoder go."""
    with torch.inference_mode():
        features = {prompt: encoder(prompt) for prompt in prompts}
    return RememberedText(features, {prompt: encoder.count(prompt) for prompt in features})


def recalled(known: Known, prompts: Iterable[str], device: torch.device) -> RememberedText | None:
    """For who need not read the encoder, nor cut prompts into tokens; None if one of them is not kept."""
    features = {}
    for prompt in prompts:
        found = known.find(prompt)
        if found is None:
            return None
        features[prompt] = found.to(device)
    return RememberedText(features, {prompt: found.shape[1] for prompt, found in features.items()})
