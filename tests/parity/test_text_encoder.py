"""umT5 on the real tokens only, against transformers' own module on 512 padded ones."""

import torch
from transformers import UMT5Config, UMT5EncoderModel

from broll.engine.config import TextConfig
from broll.engine.text_encoder import TextEncoder, umt5
from tests.checkpoints import tokenizer
from tests.parity.judge import LIMIT, relative, shake

TINY = TextConfig(vocab_size=300, d_model=64, d_kv=16, d_ff=96, num_layers=3, num_heads=4)


def encoders():
    ours = umt5(TINY)
    shake(ours)
    theirs = UMT5EncoderModel(
        UMT5Config(
            vocab_size=300, d_model=64, d_kv=16, d_ff=96, num_layers=3, num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    ).eval()  # fmt: skip
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return TextEncoder(ours, tokenizer(), 512), theirs


def test_features_equal_those_of_the_padded_and_masked_prompt():
    ours, theirs = encoders()
    prompt = "slow camera pan across a mountain lake at sunset, water rippling gently"
    batch = ours.tokenizer(prompt, padding="max_length", max_length=512, return_tensors="pt")
    real = int(batch["attention_mask"].sum())
    with torch.no_grad():
        expected = theirs(batch["input_ids"], batch["attention_mask"]).last_hidden_state[:, :real]
        features = ours(prompt)
    assert 5 < real < 512
    assert relative(features, expected) < LIMIT


def test_text_is_cleaned_as_the_official_code_does():
    ours, _ = encoders()
    with torch.no_grad():
        assert torch.equal(ours("a  lake\n&amp;amp; a hill "), ours("a lake & a hill"))
