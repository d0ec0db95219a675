"""Train nano's tokenizer and text encoder: `python -m training.text`.

The encoder (umT5's architecture, tiny) learns from captions alone, before any picture is seen: from the mean
of its token features it must name scene, light, camera and speed, and from what surrounds it each hidden word.
The transformer is then trained on its frozen features.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from broll.engine.config import TextConfig
from broll.engine.text_encoder import TextEncoder, umt5
from training import run
from training.captions import caption
from training.scenes import CAMERAS, LIGHTS, SCENES, Scene, sample

SPEEDS = ("slow", "normal", "fast")
PAD, END, UNKNOWN, HIDDEN = "<pad>", "</s>", "<unk>", "<hidden>"


def config(numbers: dict[str, Any]) -> TextConfig:
    keys = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    return TextConfig(**{key: numbers["text"][key] for key in keys})


def train_tokenizer(numbers: dict[str, Any], captions: int = 30_000) -> PreTrainedTokenizerFast:
    """A unigram model over lower-cased captions; letters and bytes keep every other word spellable."""
    rng = random.Random(numbers["seed"])
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    trainer = trainers.UnigramTrainer(
        vocab_size=numbers["text"]["vocab_size"],
        special_tokens=[PAD, END, UNKNOWN, HIDDEN],
        unk_token=UNKNOWN,
        initial_alphabet=letters,
    )
    tokenizer.train_from_iterator((caption(sample(rng), rng) for _ in range(captions)), trainer)
    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        mask_token=HIDDEN,
        model_max_length=512,
    )


class Heads(nn.Module):
    """What the features must tell: four labels from their mean, and each hidden word from its place."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        sizes = (len(SCENES), len(LIGHTS), len(CAMERAS), len(SPEEDS))
        self.labels = nn.ModuleList(nn.Linear(width, n) for n in sizes)
        self.words = nn.Linear(width, vocabulary)


def targets(scenes: list[Scene]) -> list[Tensor]:
    tables = (("scene", SCENES), ("light", LIGHTS), ("camera", CAMERAS), ("speed", SPEEDS))
    return [torch.tensor([table.index(getattr(s, key)) for s in scenes]) for key, table in tables]


def train(numbers: dict[str, Any]) -> None:
    folder, text = run.work_folder(numbers), numbers["text"]
    torch.manual_seed(numbers["seed"])
    rng = random.Random(numbers["seed"] + 1)
    tokenizer = train_tokenizer(numbers)
    tokenizer.save_pretrained(folder / "tokenizer")
    model = umt5(config(numbers)).train()
    heads = Heads(text["d_model"], text["vocab_size"])
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=text["lr"], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, text["lr"], text["steps"])
    log, hidden_id = run.Log(folder / "text.jsonl"), tokenizer.mask_token_id
    for step in range(text["steps"]):
        scenes = [sample(rng) for _ in range(text["batch"])]
        batch = tokenizer([caption(s, rng) for s in scenes], padding=True, return_tensors="pt")
        ids, mask = batch["input_ids"], batch["attention_mask"]
        hidden = (torch.rand(ids.shape) < 0.1) & mask.bool()
        features = model(input_ids=ids.masked_fill(hidden, hidden_id), attention_mask=mask).last_hidden_state
        mean = (features * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        losses = [F.cross_entropy(h(mean), y) for h, y in zip(heads.labels, targets(scenes), strict=True)]
        losses.append(0.3 * F.cross_entropy(heads.words(features[hidden]), ids[hidden]))
        torch.stack(losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % 100 == 0 or step == text["steps"] - 1:
            names = ("scene", "light", "camera", "speed", "word")
            log(step=step, **{n: float(v.detach()) for n, v in zip(names, losses, strict=True)})
    run.save(folder / "text.pt", {"model": model.state_dict()})


def load(numbers: dict[str, Any], text_len: int = 512) -> TextEncoder:
    """The trained encoder with its tokenizer."""
    folder: Path = run.work_folder(numbers)
    state = run.load(folder / "text.pt")
    if state is None:
        raise SystemExit("no trained text encoder yet: run `python -m training.text` first")
    model = umt5(config(numbers))
    model.load_state_dict(state["model"])
    return TextEncoder(model, PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"), text_len)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(run.recipe(args.recipe))


if __name__ == "__main__":
    main()
