"""Train nano's tokenizer and text encoder: `python -m training.text`.

The encoder (umT5's architecture, tiny) learns from captions alone, before any picture is seen: from the mean
of its token features it must name scene, light, camera, speed, style and move, and from what surrounds it each
hidden word. Any label goes with any other here, so that it learns words and not what suits what; and captions
are littered with words of other things and with slips, so that it can overlook what it does not know.
The transformer is then trained on its frozen features.
"""

import argparse
import random
import re
import tomllib
from functools import cache
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
from training import words as grammar
from training.camera import CAMERAS, MOVES, SPEEDS, STEADY
from training.captions import Caption, describe
from training.scenes import Scene
from training.styles import STYLES

WAYS = ("zoom", "dolly", "reveal", "left", "right")
TABLES: dict[str, tuple[str, ...]] = {
    "scene": tuple(grammar.SCENES), "light": tuple(grammar.LIGHTS), "camera": CAMERAS, "speed": tuple(SPEEDS),
    "style": STYLES, "move": WAYS,
}  # fmt: skip
SILENCE = {"camera": "static", "speed": "normal", "style": "plain"}  # what saying nothing means
NOT_SAID = -100  # as cross_entropy ignores it
PAD, END, UNKNOWN, HIDDEN = "<pad>", "</s>", "<unk>", "<hidden>"


def draw(rng: random.Random) -> Scene:
    """Any label with any other."""
    camera = rng.choice(CAMERAS)
    return Scene(
        scene=rng.choice(TABLES["scene"]),
        light=rng.choice(TABLES["light"]),
        camera=camera,
        speed="normal" if camera in STEADY else rng.choice(("slow", "normal", "normal", "fast")),
        move=rng.choice(MOVES.get(camera, ("",))),
        seed=rng.getrandbits(31),
        style="plain" if rng.random() < 0.4 else rng.choice(STYLES[1:]),
    )


@cache
def others() -> tuple[str, ...]:
    """Names of things that the grammar does not know."""
    known = set(re.findall(r"[a-z]+", Path(grammar.__file__).with_name("words.toml").read_text().lower()))
    data = run.ROOT / "broll" / "prompts" / "data" / "subjects.toml"
    classes = tomllib.loads(data.read_text())["class"].values()
    found = {w for c in classes for entry in c["words"] for w in re.findall(r"[a-z]{3,}", entry)}
    return tuple(sorted(found - known))


def littered(text: str, rng: random.Random) -> str:
    """Now and then with words of other things, or a slip of the finger."""
    said = text.split(" ")
    if rng.random() < 0.25:
        for _ in range(rng.choice((1, 1, 2, 3))):
            said.insert(rng.randrange(len(said) + 1), rng.choice(others()))
    if rng.random() < 0.15:
        at = rng.randrange(len(said))
        word, place = said[at], rng.randrange(1, max(2, len(said[at])))
        if len(word) > 4:
            said[at] = (
                word[:place] + word[place + 1 :] if rng.random() < 0.5 else word[:place] + word[place - 1 :]
            )
    return " ".join(said)


def config(numbers: dict[str, Any]) -> TextConfig:
    keys = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    return TextConfig(**{key: numbers["text"][key] for key in keys})


def train_tokenizer(numbers: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Byte pairs of lower-cased captions: the grammar's words become one token each, others are spelled."""
    rng = random.Random(numbers["seed"])
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    pieces = [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    tokenizer.decoder = decoders.Metaspace()
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    trainer = trainers.BpeTrainer(
        vocab_size=numbers["text"]["vocab_size"],
        special_tokens=[PAD, END, UNKNOWN, HIDDEN],
        initial_alphabet=letters,
        show_progress=False,
    )
    captions = range(numbers["text"]["captions"])
    texts = (littered(describe(draw(rng), rng).text, rng) for _ in captions)
    tokenizer.train_from_iterator(texts, trainer)
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
    """What the features must tell: every label from their mean, and each hidden word from its place."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.labels = nn.ModuleList(nn.Linear(width, len(table)) for table in TABLES.values())
        self.words = nn.Linear(width, vocabulary)


def targets(scenes: list[Scene], captions: list[Caption]) -> dict[str, Tensor]:
    """The place of each label in its table, where the caption says it or means it by its silence."""
    found = {}
    for key, table in TABLES.items():
        values = [(getattr(s, key), key in c.names) for s, c in zip(scenes, captions, strict=True)]
        told = [v if named or v == SILENCE.get(key) else None for v, named in values]
        found[key] = torch.tensor([NOT_SAID if v is None else table.index(v) for v in told])
    return found


def pooled(features: Tensor, mask: Tensor) -> Tensor:
    return (features * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def train(numbers: dict[str, Any]) -> None:
    folder, text = run.work_folder(numbers), numbers["text"]
    torch.manual_seed(numbers["seed"])
    rng = random.Random(numbers["seed"] + 1)
    tokenizer = train_tokenizer(numbers)
    tokenizer.save_pretrained(folder / "tokenizer")
    # Words fall into smaller pieces now and then, so that the pieces of new words mean something too.
    tokenizer.backend_tokenizer.model.dropout = text["dropout"]
    model = umt5(config(numbers)).train()
    heads = Heads(text["d_model"], text["vocab_size"])
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=text["lr"], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, text["lr"], text["steps"])
    log = run.Log(folder / "text.jsonl")
    for step in range(text["steps"]):
        losses = _losses(model, heads, tokenizer, text["batch"], rng)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % 50 == 0 or step == text["steps"] - 1:
            log(step=step, **{name: float(loss.detach()) for name, loss in losses.items()})
    tokenizer.backend_tokenizer.model.dropout = None
    run.save(folder / "text.pt", {"model": model.state_dict(), "heads": heads.state_dict()})
    for name, unseen in (("seen phrases", False), ("held-out phrases", True)):
        log(captions=name, **accuracy(model, heads, tokenizer, unseen=unseen))


def _losses(
    model: nn.Module, heads: Heads, tokenizer: PreTrainedTokenizerFast, count: int, rng: random.Random
) -> dict[str, Tensor]:
    """Of each label and of the hidden words, on as many fresh captions."""
    scenes = [draw(rng) for _ in range(count)]
    captions = [describe(s, rng) for s in scenes]
    batch = tokenizer([littered(c.text, rng) for c in captions], padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    hidden = (torch.rand(ids.shape) < 0.1) & mask.bool()
    ids_seen = ids.masked_fill(hidden, tokenizer.mask_token_id)
    features = model(input_ids=ids_seen, attention_mask=mask).last_hidden_state
    guesses = [head(pooled(features, mask)) for head in heads.labels]
    told = targets(scenes, captions)
    losses = {key: _loss(g, told[key]) for key, g in zip(TABLES, guesses, strict=True)}
    return losses | {"word": 0.3 * _loss(heads.words(features[hidden]), ids[hidden])}


def _loss(guesses: Tensor, told: Tensor) -> Tensor:
    """The mean over what is told; zero, and not nothing by nothing, where a small batch tells nothing."""
    total = F.cross_entropy(guesses, told, ignore_index=NOT_SAID, reduction="sum")
    return total / (told != NOT_SAID).sum().clamp(min=1)


@torch.no_grad()
def accuracy(
    model: nn.Module, heads: Heads, tokenizer: PreTrainedTokenizerFast, unseen: bool, batches: int = 20
) -> dict[str, float]:
    """The share of labels told right, of those that fresh captions name."""
    model.eval()
    rng = random.Random(f"accuracy/{unseen}")
    right, named = dict.fromkeys(TABLES, 0), dict.fromkeys(TABLES, 0)
    for _ in range(batches):
        scenes = [draw(rng) for _ in range(96)]
        captions = [describe(s, rng, unseen) for s in scenes]
        batch = tokenizer([c.text for c in captions], padding=True, return_tensors="pt")
        features = model(**{k: batch[k] for k in ("input_ids", "attention_mask")}).last_hidden_state
        mean = pooled(features, batch["attention_mask"])
        for (key, table), head in zip(TABLES.items(), heads.labels, strict=True):
            told = [table[i] for i in head(mean).argmax(1).tolist()]
            rows = [(s, t) for s, t, c in zip(scenes, told, captions, strict=True) if key in c.names]
            named[key] += len(rows)
            right[key] += sum(getattr(s, key) == t for s, t in rows)
    return {key: right[key] / max(1, named[key]) for key in TABLES}


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
