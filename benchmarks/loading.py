"""Loading beside diffusers, in the same run: `python benchmarks/loading.py [--folder PLACE] [--json FILE]`.

The checkpoint is WAN 2.1's 1.3B in bf16 in the diffusers layout, with random weights and a VAE of its full width in
fp32; its text encoder is one layer of umT5's width, because reading eleven gigabytes twice says nothing new. It is
written once, into PLACE (/var/tmp/broll-loading), and used again.

    load     folder -> a model that can make clips, modules imported before: `load`, `WanPipeline.from_pretrained`
    first    the transformer's first forward after it, 64 tokens under a prompt of 60: it meets what loading left to do
    warm     the files are in the page cache; cold: their pages were given back to the system before (posix_fadvise)
    memory   the most that the process took while it did both, beside what it had taken before, by the bytes of its
             weights: all its pages (those of the mapped file, which are the system's page cache, too), and its own

Every row is a fresh process, sides in turn; medians, also of the processor seconds that a process took for both. fp32
is what a CPU without fast bf16 gets by default: diffusers casts every weight, here they are cast as they are used. bf16
is kept as it is in the file. Then LoRAs for
every Linear on the loaded model: the first one from its file, another weight, another one instead, none.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PLACE = Path("/var/tmp/broll-loading")  # noqa: S108  large, and kept from run to run
SIDES, DTYPES, CACHES = ("ours", "diffusers"), ("float32", "bfloat16"), ("warm", "cold")
PROMPT_TOKENS, RANKS = 60, (32, 64)


# --- the checkpoint ---------------------------------------------------------------------------------------


def write(folder: Path) -> None:
    """By diffusers' own hand, so that neither side has to be told what it is."""
    import torch
    from diffusers import (
        AutoencoderKLWan,
        UniPCMultistepScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    with torch.device("meta"):
        transformer = WanTransformer3DModel(
            num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30, text_dim=4096
        )
    vae = AutoencoderKLWan()
    config = UMT5Config(
        vocab_size=256, d_model=4096, d_kv=64, d_ff=64, num_layers=1, num_heads=1,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    WanPipeline(
        tokenizer=letters(),
        text_encoder=UMT5EncoderModel(config).bfloat16(),
        vae=vae,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        transformer=random_weights(transformer.bfloat16()),
    ).save_pretrained(folder, max_shard_size="20GB")


def random_weights(module: Any) -> Any:
    module.to_empty(device="cpu")
    for parameter in module.parameters():
        parameter.data.normal_(std=0.02)
    return module.eval().requires_grad_(False)


def letters() -> Any:
    """A tokenizer that knows letters and a mark at the end."""
    from tokenizers import Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *map(chr, range(32, 127))]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))  # noqa: S106
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **tokens)


def write_loras(place: Path) -> None:
    """One for each of RANKS, for every Linear, in bf16, as ComfyUI names them."""
    import torch
    from safetensors.torch import save_file

    from broll.engine.config import PUBLISHED
    from broll.engine.transformer import Transformer

    with torch.device("meta"):
        model = Transformer(PUBLISHED["wan2.1-t2v-1.3b"].transformer)
    for rank in RANKS:
        tensors = {}
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                rows, columns = module.weight.shape
                down, up = torch.randn(rank, columns) * 0.02, torch.randn(rows, rank) * 0.02
                tensors[f"diffusion_model.{name}.lora_down.weight"] = down.bfloat16()
                tensors[f"diffusion_model.{name}.lora_up.weight"] = up.bfloat16()
        save_file(tensors, place / f"rank{rank}.safetensors")


def ready(place: Path) -> Path:
    folder, mark = place / "checkpoint", place / "whole"
    if not mark.exists():
        print(f"writing a checkpoint into {folder}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder)
        write_loras(place)
        os.sync()  # pages that are not written yet cannot be given back
        mark.touch()
    return folder


# --- one process ------------------------------------------------------------------------------------------


def ours(folder: Path, dtype: str) -> tuple[Callable[[], Any], list[Any]]:
    import torch

    from broll.engine import conditioning, load
    from broll.engine.shapes import Grid

    low = getattr(torch, dtype)
    how = load.Precision(linears=low, text=low, halves=low == torch.float32)  # wiring.precision on such a CPU
    parts = load.load(folder, "loading", precision=how)
    model = parts.transformer

    def forward() -> Any:
        given = conditioning.collapsed(torch.randn(1, PROMPT_TOKENS, 4096), model.config.text_len)
        context = model.context(Grid(1, 16, 16), given.features, text_bias=given.bias)
        return model(torch.randn(1, 16, 1, 16, 16), torch.tensor([999.0]), context)

    return forward, [parts.transformer, parts.vae, parts.text.model]


def theirs(folder: Path, dtype: str) -> tuple[Callable[[], Any], list[Any]]:
    import torch
    from diffusers import AutoencoderKLWan, WanPipeline

    low = getattr(torch, dtype)
    vae = AutoencoderKLWan.from_pretrained(folder, subfolder="vae", dtype=torch.float32)  # as its guide says
    pipe = WanPipeline.from_pretrained(folder, vae=vae, dtype=low)

    def forward() -> Any:
        text = torch.randn(1, 512, 4096)
        text[:, PROMPT_TOKENS:] = 0  # as the pipeline pads
        latent = torch.randn(1, 16, 1, 16, 16).to(low)
        return pipe.transformer(latent, torch.tensor([999]), text.to(low), return_dict=False)[0]

    return forward, [pipe.transformer, pipe.vae, pipe.text_encoder]


def imports(side: str) -> None:
    import transformers.models.umt5.modeling_umt5  # noqa: F401  both sides would import it when they load

    if side == "ours":
        import broll.engine.load
        import broll.engine.pipeline  # noqa: F401
    else:
        import diffusers.pipelines.wan.pipeline_wan  # noqa: F401


def child(side: str, dtype: str, folder: Path, *, watched: bool) -> dict[str, Any]:
    """Load and run once in this process; `watched` also says how much memory it took."""
    begin = time.perf_counter()
    imports(side)
    import torch

    watch = Watch() if watched else None
    with torch.inference_mode():
        start, spent = time.perf_counter(), time.process_time()
        forward, modules = (ours if side == "ours" else theirs)(folder, dtype)
        loaded = time.perf_counter()
        forward()
        end = time.perf_counter()
    row: dict[str, Any] = {"imports_s": start - begin, "load_s": loaded - start, "first_s": end - loaded}
    row["cpu_s"] = time.process_time() - spent
    if watch is not None:
        held = {
            tensor.data_ptr(): tensor.nbytes for m in modules for tensor in (*m.parameters(), *m.buffers())
        }
        row |= {"kept_bytes": sum(held.values())} | watch.end()
    return row


class Watch:
    """The most memory from now on, beside what there was; a process's own pages have no high-water mark: look often."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        self.before = {key: status(key) for key in ("VmRSS", "RssAnon")}
        self.own, self.done = 0, False
        self.thread = threading.Thread(target=self._look)
        self.thread.start()

    def _look(self) -> None:
        while not self.done:
            self.own = max(self.own, status("RssAnon"))
            time.sleep(0.005)

    def end(self) -> dict[str, int]:
        self.done = True
        self.thread.join()
        return {
            "all_bytes": status("VmHWM") - self.before["VmRSS"],
            "own_bytes": self.own - self.before["RssAnon"],
        }


def status(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def loras(dtype: str, folder: Path) -> dict[str, float]:
    """Seconds of what one does with LoRAs on a loaded model; files in the page cache, read anew."""
    import torch

    from broll.engine import lora, lora_files

    forward, (model, *_) = ours(folder, dtype)
    forward()
    first, second = (folder.parent / f"rank{rank}.safetensors" for rank in RANKS)

    def swapped(path: Path) -> None:
        lora.attach(model, [(lora_files.read(path), 1.0, None)])

    def weighted() -> None:
        mine = lora.attached(model)
        assert mine is not None
        lora.attach(model, [(one, 0.5, None) for one, _, _ in mine.stack])

    lora_files.read(first), lora_files.read(second)
    steps: dict[str, Callable[[], None]] = {
        f"rank {RANKS[0]} from its file": lambda: swapped(first),
        "another weight": weighted,
        f"rank {RANKS[1]} from its file instead": lambda: swapped(second),
        "none": lambda: lora.detach(model),
    }
    with torch.inference_mode():
        return {name: seconds(step) for name, step in steps.items()}


def seconds(step: Callable[[], None]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


# --- all of them ------------------------------------------------------------------------------------------


def forget(folder: Path) -> None:
    """Give the pages of these files back to the system."""
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def recall(folder: Path) -> None:
    """And have them in memory again."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def process(*words: str) -> dict[str, Any]:
    quiet = {
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    done = subprocess.run(
        [sys.executable, __file__, "--child", *words],
        stdout=subprocess.PIPE, text=True, check=True, env=os.environ | quiet,
    )  # fmt: skip
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(folder: Path, dtype: str, cache: str, runs: int) -> dict[str, Any]:
    made: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(runs):
        for side in SIDES:
            (recall if cache == "warm" else forget)(folder)
            made[side].append(process(side, dtype, str(folder)))
    row: dict[str, Any] = {"dtype": dtype, "cache": cache}
    for side, rows in made.items():
        for key in ("imports_s", "load_s", "first_s", "cpu_s"):
            row[f"{side}_{key}"] = middle([one[key] for one in rows])
        row[f"{side}_s"] = middle([one["load_s"] + one["first_s"] for one in rows])
    return row | {"ratio": row["diffusers_s"] / row["ours_s"]}


def middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def told(row: dict[str, Any]) -> str:
    sides = "".join(
        f"{row[f'{side}_load_s']:>10.2f}{row[f'{side}_first_s']:>8.2f}{row[f'{side}_s']:>8.2f}{row[f'{side}_cpu_s']:>8.1f}"
        for side in SIDES
    )
    return f"{row['dtype']:10}{row['cache']:6}{sides}{row['ratio']:>8.2f}"


def memory(folder: Path, dtype: str) -> str:
    recall(folder)
    rows = {side: process(side, dtype, str(folder), "watched") for side in SIDES}
    sides = "".join(
        f"{one['kept_bytes'] / 1e9:>10.2f}{one['all_bytes'] / one['kept_bytes']:>8.2f}"
        f"{one['own_bytes'] / one['kept_bytes']:>8.2f}"
        for one in rows.values()
    )
    return f"{dtype:10}{sides}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=PLACE)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtypes", nargs="*", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--caches", nargs="*", default=list(CACHES), choices=CACHES)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        what, dtype, folder, *watched = args.child
        made = (
            loras(dtype, Path(folder))
            if what == "loras"
            else child(what, dtype, Path(folder), watched=bool(watched))
        )
        print(json.dumps(made))
        return
    folder = ready(args.folder)
    columns = f"{'load':>10}{'first':>8}{'both':>8}{'cpu':>8}"
    print(f"{'':16}{'broll':>34}{'diffusers':>34}\n{'seconds':16}{columns}{columns}{'ratio':>8}")
    rows = []
    for dtype in args.dtypes:
        for cache in args.caches:
            rows.append(measure(folder, dtype, cache, args.runs))
            print(told(rows[-1]), flush=True)
    columns = f"{'GB':>10}{'all':>8}{'own':>8}"
    print(f"\n{'':10}{'broll':>26}{'diffusers':>26}\n{'memory':10}{columns}{columns}")
    for dtype in args.dtypes:
        print(memory(folder, dtype), flush=True)
    print("\nLoRAs")
    for dtype in args.dtypes:
        for name, took in process("loras", dtype, str(folder)).items():
            print(f"{dtype:10}{name:32}{took:>8.2f} s", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
