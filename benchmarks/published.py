"""The arithmetic beside published runs of WAN 2.1 on one GPU: `python -m benchmarks.published`.

Each row is a run by somebody else, with what is known of its setup. Operations are counted as for broll; from them and
the published seconds follows the share of the card's bf16 rate that was reached. Memory is what broll's arithmetic says
for the same parts in the same precision. Where the setup is not known, `why` says what is missing, and nothing is
claimed.

All: 81 frames, 50 steps (image-to-video 40), guidance on, as the official defaults have it.
"""

from dataclasses import dataclass

import torch

from broll import cards
from broll.engine import footprint
from broll.engine.config import PUBLISHED
from broll.engine.estimate import Estimate, estimate
from broll.engine.load import Precision
from broll.engine.pipeline import resolve
from broll.spec import Artifact, parse

README = "Wan2.1 README, assets/comp_effic.png"
SVG = "Sparse VideoGen, its baselines"
TEACACHE, MAGCACHE = "TeaCache README, A800 baselines", "MagCache README, A800 baselines"
LIGHTX2V = "LightX2V README 2025-12 and docs/EN benchmark_source.md"
FASTVIDEO = "FastVideo docs"
S480, S720 = (832, 480), (1280, 720)
T2V, I2V, SMALL = "wan2.1-t2v-14b", "wan2.1-i2v-14b", "wan2.1-t2v-1.3b"
EAGER = "FlashAttention 2, eager"  # what `share` in cards.py is for
DIT = (
    "transformer",
    "vae",
)  # --offload_model: encoders wait in main memory, the transformer leaves before decoding
ALL = ("transformer", "vae", "text_encoder", "image_encoder")


@dataclass(frozen=True)
class Row:
    source: str
    gpu: str
    model: str
    size: tuple[int, int]
    seconds: float | None = None  # of the whole run
    gigabytes: float | None = None  # at its peak
    kernel: str | None = None  # None: not known, or not one that is compared
    parts: tuple[str, ...] | None = None  # in the GPU's memory while it denoises; None: not known
    weights: torch.dtype = torch.bfloat16  # of the transformer
    vae: torch.dtype = torch.float32
    why: str = ""  # it cannot be matched


F32 = torch.float32
ROWS = (
    Row(README, "RTX 4090", SMALL, S480, 261.4, 8.19, EAGER, DIT, F32),
    Row(README, "H20", T2V, S720, 6935.5, 69.1, EAGER, DIT, F32),
    Row(README, "H20", I2V, S720, 5494.8, 76.7, EAGER, DIT, F32),
    Row(README, "A100", T2V, S720, 3342.6, 69.1, EAGER, DIT, F32),
    Row(README, "A100", I2V, S720, 2715.5, 76.7, EAGER, DIT, F32),
    Row(README, "H100", T2V, S720, 1837.9, 69.1, EAGER, DIT, F32),
    Row(README, "H100", I2V, S720, 1491.6, 76.7, EAGER, DIT, F32),
    Row(SVG, "H100", T2V, S720, 31 * 60 + 35, kernel=EAGER),
    Row(SVG, "H100", T2V, S480, 8 * 60 + 5, kernel=EAGER),
    Row(SVG, "H100", I2V, S720, 24 * 60 + 5, kernel=EAGER),
    Row(TEACACHE, "A100", SMALL, S480, 175, kernel=EAGER),
    Row(TEACACHE, "A100", T2V, S720, 55 * 60, kernel=EAGER),
    Row(TEACACHE, "A100", I2V, S480, 735, kernel=EAGER),
    Row(
        TEACACHE,
        "A100",
        I2V,
        S720,
        29 * 60,
        why="would be 96 % of the card: its clip is smaller than 1280x720",
    ),
    Row(MAGCACHE, "A100", T2V, S720, 60 * 60 + 4, kernel=EAGER),
    Row(MAGCACHE, "A100", SMALL, S480, 189, kernel=EAGER),
    Row(MAGCACHE, "A100", I2V, S480, 13 * 60 + 20, kernel=EAGER),
    Row(
        MAGCACHE,
        "A100",
        I2V,
        S720,
        30 * 60 + 40,
        why="would be 91 % of the card: its clip is smaller than 1280x720",
    ),
    Row(FASTVIDEO, "A100", SMALL, S480, 259.7, kernel=EAGER),
    Row(FASTVIDEO, "A100", SMALL, S480, 198.1, why="the row before, compiled"),
    Row(LIGHTX2V + ", diffusers", "H100", I2V, S480, 40 * 9.77, kernel=EAGER),
    Row(LIGHTX2V + ", xDiT", "H100", I2V, S480, 40 * 8.93, why="kernels not said"),
    Row(LIGHTX2V + ", FastVideo", "H100", I2V, S480, 40 * 7.35, why="kernels not said"),
    Row(LIGHTX2V + ", SGLang", "H100", I2V, S480, 40 * 6.13, why="kernels not said"),
    Row(LIGHTX2V, "H100", I2V, S480, 40 * 5.18, why="kernels not said; fused ones"),
    Row(LIGHTX2V + ", official", "H200", I2V, S480, 366, 71, EAGER, DIT, F32),
    Row(
        LIGHTX2V + ", official",
        "H200",
        I2V,
        S720,
        974,
        81,
        None,
        DIT,
        F32,
        why="time: too fast for FlashAttention 2",
    ),
    Row(LIGHTX2V + ", FastVideo", "H200", I2V, S480, 292, 26, why="sage2; offload not described"),
    Row(LIGHTX2V + ", FastVideo", "H200", I2V, S720, 914, 40, why="sage2; offload not described"),
    Row(LIGHTX2V + " LX_1", "H200", I2V, S480, 250, 53, why="sage2; which parts are fp32 not said"),
    Row(LIGHTX2V + " LX_1", "H200", I2V, S720, 807, 65, why="sage2; which parts are fp32 not said"),
    Row(LIGHTX2V + " LX_2", "H200", I2V, S480, 216, 50, None, ALL, vae=torch.bfloat16, why="time: sage2"),
    Row(LIGHTX2V + " LX_2", "H200", I2V, S720, 751, 57, None, ALL, vae=torch.bfloat16, why="time: sage2"),
    Row(
        LIGHTX2V + " LX_3",
        "H200",
        I2V,
        S480,
        191,
        35,
        why="fp8 and sage2; VAE in tiles; precision of umT5 not said",
    ),
    Row(
        LIGHTX2V + " LX_3",
        "H200",
        I2V,
        S720,
        671,
        43,
        why="fp8 and sage2; VAE in tiles; precision of umT5 not said",
    ),
    Row(LIGHTX2V + " LX_5", "RTX 4090", I2V, S480, 738, 16, why="fp8, sage2 and blocks offloaded"),
    Row(LIGHTX2V + " LX_5", "RTX 4090", I2V, S720, 2473, 23, why="fp8, sage2 and blocks offloaded"),
    Row(LIGHTX2V + " LX_6", "RTX 4090", I2V, S480, 630, 12, why="fp8, sage2 and blocks offloaded"),
    Row(LIGHTX2V + " LX_6", "RTX 4090", I2V, S720, 2169, 18, why="fp8, sage2 and blocks offloaded"),
    Row(LIGHTX2V, "H200", SMALL, S480, 58, why="kernels not said"),
    Row("FlashDreams 2026-05", "H100", SMALL, S480, 50 * 1.04, why="fused kernels and CUDA graphs"),
)


def name_of(row: Row) -> str:
    return row.model + ("-480p" if row.size == S480 else "-720p") if row.model == I2V else row.model


def cost(row: Row, precision: Precision) -> Estimate:
    config = PUBLISHED[name_of(row)]
    image = {"image": Artifact.of(b"")} if config.image else {}
    asked = parse(model=config.name, prompt="a clip", width=row.size[0], height=row.size[1], **image)
    return estimate(resolve(asked, config), config, precision=precision, device="cuda", prompt_tokens=500)


def petaflops(row: Row) -> float:
    return cost(row, Precision(linears=torch.bfloat16)).stage("denoise").operations.total / 1e15


def share(row: Row) -> float | None:
    """Of the card's dense bf16 rate, by the operations of denoising in the time of the whole run."""
    if row.seconds is None:
        return None
    return petaflops(row) * 1e15 / row.seconds / cards.CARDS[row.gpu].bf16


def gigabytes(row: Row) -> float | None:
    """Weights of these parts, and the greater of one forward in bf16 and one chunk of decoding."""
    if row.parts is None or row.gigabytes is None:
        return None
    config = PUBLISHED[name_of(row)]
    low = Precision(row.weights, torch.bfloat16, row.vae, torch.float16)
    sizes = footprint.built(config, low)
    held = sum(sizes[part] for part in row.parts if part in sizes)
    made = cost(row, Precision(linears=torch.bfloat16, vae=row.vae))
    decoding = held - (sizes["transformer"] if row.parts == DIT else 0)
    return max(held + made.stage("denoise").working, decoding + made.stage("decode").working) / 1e9


def main() -> None:
    print("| source | GPU | model, size | s | PFLOP | share of bf16 | GB, published | GB, counted | |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in ROWS:
        reached, memory = share(row), gigabytes(row)
        print(
            f"| {row.source} | {row.gpu} | {row.model.removeprefix('wan2.1-')}, {row.size[0]}x{row.size[1]} "
            f"| {row.seconds:g} | {petaflops(row):.1f} | {reached:.2f} | {row.gigabytes or ''} "
            f"| {f'{memory:.1f}' if memory else ''} | {row.why or row.kernel or ''} |"
        )


if __name__ == "__main__":
    main()
