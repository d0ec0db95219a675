"""The tiny decoder: published names and shapes, the published formulas written down once more, what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from broll.engine import preview, sources, tiny_decoder
from broll.engine.tiny_decoder import TinyDecoder
from broll.errors import BadCheckpoint
from tests import checkpoints

CPU = torch.device("cpu")

# As the headers of taew2_1.safetensors have them; the encoder's are of no use here.
SHAPES = {
    "1.weight": (256, 16, 3, 3), "1.bias": (256,), "7.conv.weight": (256, 256, 1, 1), "8.weight": (128, 256, 3, 3),
    "13.conv.weight": (256, 128, 1, 1), "14.weight": (64, 128, 3, 3), "19.conv.weight": (128, 64, 1, 1),
    "20.weight": (64, 64, 3, 3), "22.weight": (3, 64, 3, 3), "22.bias": (3,),
} | {
    f"{block}.conv.{layer}.{kind}": {"weight": (dim, dim * (2 if layer == 0 else 1), 3, 3), "bias": (dim,)}[kind]
    for first, dim in ((3, 256), (9, 128), (15, 64)) for block in range(first, first + 3)
    for layer in (0, 2, 4) for kind in ("weight", "bias")
}  # fmt: skip


def weights():
    """Random ones that keep numbers near one through the layers."""
    generator = torch.Generator().manual_seed(0)
    return {
        f"decoder.{name}": torch.randn(shape, generator=generator)
        / (1 if len(shape) == 1 else (shape[1] * shape[2] * shape[3]) ** 0.5)
        for name, shape in SHAPES.items()
    }


def frame_by_frame(w, latents):
    """taehv.py's formulas, one frame after the other: [f, 16, h, w] to [4 f - 3, 3, 8 h, 8 w] in [0, 1]."""

    def conv(name, x):
        return F.conv2d(x, w[f"decoder.{name}.weight"], w.get(f"decoder.{name}.bias"), padding="same")

    past = {}

    def block(i, x):
        before = past.get(i, torch.zeros_like(x))
        past[i] = x
        y = conv(f"{i}.conv.0", torch.cat([x, before], 1)).relu()
        return (conv(f"{i}.conv.4", conv(f"{i}.conv.2", y).relu()) + x).relu()

    def doubled(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    frames = []
    for latent in latents:
        x = conv(1, torch.tanh(latent[None] / 3) * 3).relu()
        for i in (3, 4, 5):
            x = block(i, x)
        x = conv(8, conv("7.conv", doubled(x)))
        for i in (9, 10, 11):
            x = block(i, x)
        for half in conv("13.conv", doubled(x)).chunk(2, 1):
            y = conv(14, half)
            for i in (15, 16, 17):
                y = block(i, y)
            quarters = conv("19.conv", doubled(y)).chunk(2, 1)
            frames += [conv(22, conv(20, quarter).relu()).clamp(0, 1) for quarter in quarters]
    return torch.cat(frames)[3:]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "taew2_1.safetensors"
    save_file(weights() | {"encoder.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    return path


@pytest.fixture(scope="module")
def tiny(file):
    return tiny_decoder.load(file, 16, CPU)


def test_names_and_shapes_are_the_published_ones():
    ours = {name: tuple(tensor.shape) for name, tensor in TinyDecoder().state_dict().items()}
    assert ours == {f"decoder.{name}": shape for name, shape in SHAPES.items()}
    assert len(ours) == 64


def test_it_decodes_as_the_published_formulas_say(tiny):
    z = torch.randn(1, 16, 5, 3, 4)
    with torch.inference_mode():
        torch.testing.assert_close(
            tiny(z), frame_by_frame(weights(), z[0].transpose(0, 1)), atol=1e-5, rtol=0
        )
    assert tiny(z).shape == (17, 3, 24, 32)


@pytest.mark.parametrize("index", [0, 1, 5, 9])
def test_a_still_is_the_frame_of_the_whole_clip_though_few_latents_are_looked_at(tiny, index):
    z = torch.randn(1, 16, 11, 2, 2)
    with torch.inference_mode():
        whole = (tiny(z)[4 * index] * 255).round().to(torch.uint8).permute(1, 2, 0)
    still = tiny.still(z, index)
    assert (still.int() - whole.int()).abs().max() <= 1
    z[:, :, index + 1 :] = z[:, :, : max(0, index - 7)] = float("nan")  # none of these
    assert torch.equal(tiny.still(z, index), still)


def test_it_is_read_from_the_published_pickle_too(tmp_path, tiny):
    torch.save(weights(), tmp_path / "taew2_1.pth")
    again = tiny_decoder.load(tmp_path / "taew2_1.pth", 16, CPU)
    z = torch.randn(1, 16, 1, 2, 2)
    assert torch.equal(again.still(z, 0), tiny.still(z, 0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"decoder.1.weight": torch.zeros(256, 48, 3, 3)}, "needs .256, 16, 3, 3."),
        ({"decoder.22.bias": None}, "lacks decoder.22.bias"),
        ({"decoder.23.weight": torch.zeros(1)}, "has decoder.23.weight"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path, change, said):
    made = {name: tensor for name, tensor in (weights() | change).items() if tensor is not None}
    save_file(made, tmp_path / "other.safetensors")
    with pytest.raises(BadCheckpoint, match=said) as refused:
        tiny_decoder.load(tmp_path / "other.safetensors", 16, CPU)
    assert "\n" not in str(refused.value)


def test_latents_of_another_model_are_refused(file):
    with pytest.raises(BadCheckpoint, match=r"latents with 16 channels.*this model's have 32"):
        tiny_decoder.load(file, 32, CPU)


def test_it_is_found_beside_a_model_or_where_model_toml_says(tmp_path, file):
    folder = checkpoints.diffusers_folder(tmp_path / "tiny")
    assert sources.preview_file(folder) is None
    (folder / "taew2_1.pth").write_bytes(b"")
    assert sources.preview_file(folder) == folder / "taew2_1.pth"
    (folder / "model.toml").write_text(f'[preview]\nfile = "{file}"\n')
    assert sources.preview_file(folder) == file
    assert file not in [path for paths in sources.weight_files(folder).values() for path in paths]


def test_the_middle_of_a_clip_is_shown_by_it_if_it_is_there(tiny):
    z = torch.randn(1, 16, 5, 2, 3)
    assert preview.still(z).shape == (2, 3, 3)
    assert torch.equal(preview.still(z), preview.preview(z)[2])
    assert torch.equal(preview.still(z, tiny=tiny), tiny.still(z, 2))
