"""Published GPUs as data: for plans of what is not here.

`bf16` and `fp32` are dense operations a second from the vendor's sheets (half of what is printed "with sparsity"),
`bandwidth` bytes a second, `memory` bytes. `share` is the part of bf16 that eager PyTorch with FlashAttention 2 reached
in published runs of WAN 2.1: one number for a class of cards, the mean of the rows in docs/plan.md, not one for a row.

    H100, H200    nvidia.com/en-us/data-center/h100, h200      A100   nvidia.com/en-us/data-center/a100 (80 GB SXM)
    L40S          nvidia.com/en-us/data-center/l40s            H20    as in the table of NVIDIA's HGX H20
    RTX 4090      Ada GPU architecture whitepaper, appendix A (bf16 with fp32 accumulation)
    RTX 5090      RTX Blackwell GPU architecture whitepaper, appendix A (the same)

A convolution in fp32 runs on the plain units here; cuDNN may take TF32 and be faster.
"""

from dataclasses import dataclass

from broll.errors import BadOption

GB = 10**9
BUS = 25e9  # a second from pinned memory over PCIe 4.0 x16, which has 31.5 by its standard
TERA = 1e12


@dataclass(frozen=True)
class Card:
    name: str
    memory: float
    bf16: float
    fp32: float
    bandwidth: float
    share: float
    kin: str = ""  # the class that `share` was seen on, if not on this card's own


HOPPER, AMPERE, ADA, H20 = 0.355, 0.55, 0.655, 0.64

CARDS = {
    card.name: card
    for card in (
        Card("H100", 80 * GB, 989.4 * TERA, 67 * TERA, 3350 * GB, HOPPER),
        Card("H200", 141 * GB, 989.4 * TERA, 67 * TERA, 4800 * GB, HOPPER),
        Card("H20", 96 * GB, 148 * TERA, 44 * TERA, 4000 * GB, H20),
        Card("A100", 80 * GB, 312 * TERA, 19.5 * TERA, 2039 * GB, AMPERE),
        Card("RTX 4090", 24 * GB, 165.2 * TERA, 82.6 * TERA, 1008 * GB, ADA),
        Card("L40S", 48 * GB, 362 * TERA, 91.6 * TERA, 864 * GB, ADA, "the RTX 4090"),
        Card("RTX 5090", 32 * GB, 209.5 * TERA, 104.8 * TERA, 1792 * GB, ADA, "the RTX 4090"),
    )
}


def find(wanted: str) -> Card:
    """By name; case, spaces and hyphens do not matter."""
    plain = {name.lower().replace(" ", ""): card for name, card in CARDS.items()}
    key = wanted.lower().replace(" ", "").replace("-", "").removeprefix("nvidia")
    card = plain.get(key) or plain.get(f"rtx{key}")
    if card is None:
        raise BadOption(f"--device is {wanted!r}; known are {', '.join(CARDS)}")
    return card
