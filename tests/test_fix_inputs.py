"""Labels and pixels that do not fit the given model: `purifier fix` must not report a success that is none."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reader import NAMES, PIXELS, given, normalised, trained
from reader import here as here
from reader import reader as reader
from safetensors.torch import save_file
from torch import nn

from purifier_core import cli
from purifier_core.checks import ConfigError
from purifier_core.fix import gate, images, pixels
from purifier_core.fix.classes import class_of, numbered, read_names
from purifier_core.fix.measure import Rate
from purifier_core.fix.options import Options
from purifier_core.fix.pixels import Pixels

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def options(**more) -> Options:
    return Options("a:b", Path("w.pt"), Path("clean"), Path("o.pt"), **more)


def renamed(here: Path, names: dict[str, str]) -> Path:
    """The clean images in folders of other names."""
    clean = here / "in" / "clean"
    for old, new in names.items():
        shutil.copytree(Path("clean") / old, clean / new)
    return clean


def test_permuted_labels_stop_with_cause_and_way_out(here, capsys):
    clean = renamed(here, dict(zip(NAMES, ("2", "0", "1"), strict=True)))
    out = here / "out" / "p.pt"
    out.parent.mkdir()
    assert cli.main(given(out, images=clean, method="feature")) == 2
    error = capsys.readouterr().err
    assert "the labels look permuted: the folder '0', numbered 0, is predicted as class 1" in error
    for way in ("--class-names", "--class-index", "--natural", "--trust-inputs"):
        assert way in error
    assert list(out.parent.iterdir()) == []
    names = here / "names.json"
    names.write_text(json.dumps({"2": "0", "0": "1", "1": "2"}))
    assert cli.main(given(out, images=clean, class_names=names)) == 2, "names the classes wrongly again"
    names.write_text(json.dumps({"0": "2", "1": "0", "2": "1"}))
    assert cli.main(given(out, images=clean, class_names=names, budget=0.2, max_drop=0.1)) == 0
    assert "right on 100.0 %" in capsys.readouterr().out


def test_trusted_inputs_only_warn(here, capsys):
    clean = renamed(here, dict(zip(NAMES, ("c", "a", "b"), strict=True)))
    assert cli.main(given(here / "p.pt", images=clean, trust_inputs=True)) in (0, 1)
    assert "warning: the labels look permuted" in capsys.readouterr().out


def test_ten_digits_as_words_are_recognised():
    """Sorted as text `eight` is class 0; a right network predicts it as class 8."""
    order = numbered(WORDS, options())
    labels = torch.tensor([order[word] for word in WORDS]).repeat_interleave(20)
    predicted = torch.arange(10).repeat_interleave(20)
    predicted[::25] = 3  # and is not always right
    reading = gate.Reading(labels, predicted, gate.match(labels, predicted))
    with pytest.raises(ConfigError, match="the folder 'eight', numbered 0, is predicted as class 8"):
        gate.check_labels(reading, {n: word for word, n in order.items()}, 10)


def test_two_swapped_classes_of_forty_are_recognised():
    labels = torch.arange(40).repeat_interleave(10)
    predicted = labels.clone()
    predicted[labels == 7], predicted[labels == 9] = 9, 7
    with pytest.raises(ConfigError, match="permuted"):
        gate.check_labels(gate.Reading(labels, predicted, gate.match(labels, predicted)), {}, 40)


@pytest.mark.parametrize("few", [1, 2, 3])
def test_a_weak_network_on_few_images_is_not_called_permuted(few):
    """With few images of many classes some renumbering always fits better."""
    generator = torch.Generator().manual_seed(few)
    labels = torch.arange(40).repeat_interleave(few)
    predicted = torch.where(torch.rand(len(labels), generator=generator) < 0.5, labels, torch.randint(40, labels.shape))
    gate.check_labels(gate.Reading(labels, predicted, gate.match(labels, predicted)), {}, 40)


def test_an_accuracy_of_chance_stops():
    labels = torch.arange(300) % 10
    predicted = torch.randint(10, (300,), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ConfigError, match=r"chance is 10\.0 %: are these its weights"):
        gate.check_labels(gate.Reading(labels, predicted, gate.match(labels, predicted)), {}, 10)


def test_a_wrong_normalisation_stops_and_names_the_right_one(here, capsys):
    import reader_net

    torch.manual_seed(1)
    clean = images.stack(images.anywhere(Path("clean")).paths, PIXELS).images
    model = trained(reader_net.make(), normalised(clean, "255"), torch.arange(3).repeat_interleave(14))
    save_file(model.state_dict(), here / "other.safetensors")
    assert cli.main(given(here / "p.pt", weights=here / "other.safetensors")) == 2
    assert "wrongly normalised: with --normalize 255 the model is right on 100" in capsys.readouterr().err
    more = {"budget": 0.2, "max_drop": 0.1}
    assert cli.main(given(here / "p.pt", weights=here / "other.safetensors", normalize="255", **more)) == 0


# as transformers 5.24 writes it, but for the sizes; its pixels and ours were compared for twelve of its processors
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
LEVIT = {"image_processor_type": "LevitImageProcessor"}


@pytest.mark.parametrize(
    ("content", "name", "wanted"),
    [
        (
            {"pretrained_cfg": {"input_size": [3, 24, 24], "crop_pct": 0.8, "mean": [0.5] * 3, "std": [0.25] * 3}},
            "config.json",
            {"size": 24, "resize": 30, "mean": (0.5,), "std": (0.25,)},
        ),
        (
            {
                "size": {"shortest_edge": 32},
                "crop_size": {"height": 24, "width": 24},
                "do_center_crop": True,
                "image_mean": [0.1, 0.2, 0.3],
                "image_std": [0.4, 0.5, 0.6],
                "resample": 3,
            },
            "preprocessor_config.json",
            {"size": 24, "resize": 32, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "bicubic": True},
        ),
        (
            {"size": {"height": 24, "width": 24}, "do_normalize": False, "do_rescale": False},
            "preprocessor_config.json",
            {"size": 24, "resize": None, "mean": (0.0,), "std": (1 / 255,)},
        ),
        (
            {"size": {"height": 32, "width": 32}, "crop_size": 24, "do_center_crop": True} | HALF,
            "preprocessor_config.json",
            {"size": 24, "resize": 32, "square": True},
        ),
        (
            {"size": {"shortest_edge": 24}, "crop_pct": 0.75} | HALF,
            "preprocessor_config.json",
            {"size": 24, "resize": 32, "square": False},
        ),
        (
            {"size": {"shortest_edge": 384}, "crop_pct": 0.875} | HALF,
            "preprocessor_config.json",
            {"size": 384, "resize": None},
        ),
        (
            {"size": {"shortest_edge": 28}, "crop_size": 28, "do_center_crop": True} | HALF | LEVIT,
            "preprocessor_config.json",
            {"size": 28, "resize": 32, "square": False},
        ),
        (
            {"size": 24, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "include_top": True},
            "preprocessor_config.json",
            {"mean": (0.5,), "std": (0.25,)},
        ),
        (
            {"size": 24, "image_mean": [0.0] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 127.5}
            | {"rescale_offset": True},
            "preprocessor_config.json",
            {"mean": (0.5,), "std": (0.25,)},
        ),
    ],
    ids=["timm", "hugging face", "raw bytes", "DeiT", "ConvNeXT", "ConvNeXT at 384", "LeViT", "EfficientNet", "offset"],
)
def test_a_configuration_beside_the_weights_says_the_pixels(tmp_path, content, name, wanted):
    (tmp_path / name).write_text(json.dumps(content))
    read = pixels.choose(Options("a:b", tmp_path / "w.pt", Path("c"), Path("o.pt")), 3, None)
    assert {key: getattr(read, key) for key in wanted} == wanted
    told = Options("a:b", tmp_path / "w.pt", Path("c"), Path("o.pt"), size=16, normalize="0.1,0.2")
    read = pixels.choose(told, 3, None)
    assert (read.size, read.resize, read.mean, read.std) == (16, None, (0.1,), (0.2,))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("preprocessor_config.json", json.dumps({"size": 24, "rescale_factor": 0} | HALF)),
        ("preprocessor_config.json", json.dumps({"size": {"height": 24, "width": 32}} | HALF)),
        ("config.json", '{"pretrained_cfg": {"input_size": [3, 1e999, 1e999]}}'),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused_and_the_way_out_works(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    paths = tmp_path / "w.pt", Path("c"), Path("o.pt")
    with pytest.raises(ConfigError, match=r"is not understood; give --size and --normalize"):
        pixels.choose(Options("a:b", *paths), 3, None)
    assert pixels.choose(Options("a:b", *paths, size=16, normalize="none"), 3, None).size == 16


def test_a_configuration_that_wants_blue_first_is_refused(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 24, "do_flip_channel_order": True}))
    with pytest.raises(ConfigError, match=r"blue before green before red.*x\.flip\(1\)"):
        pixels.choose(Options("a:b", tmp_path / "w.pt", Path("c"), Path("o.pt")), 3, None)


def test_a_grey_network_gets_grey_images(here, capsys):
    import reader_net

    torch.save(reader_net.grey().state_dict(), here / "grey.pt")
    arguments = given(here / "p.pt", model="reader_net:grey", weights=here / "grey.pt", trust_inputs=True)
    assert cli.main(arguments) in (0, 1)
    assert "grey, 24 x 24 pixels, stretched, normalised by none" in capsys.readouterr().out


def test_the_middle_is_cut_as_torchvision_does(tmp_path):
    from torchvision import transforms

    draw = np.random.default_rng(0).integers(0, 256, (50, 91, 3), dtype=np.uint8)
    Image.fromarray(draw).save(tmp_path / "a.png")
    theirs = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(24)])(Image.open(tmp_path / "a.png"))
    ours, _ = images.read(tmp_path / "a.png", pixels.Pixels(size=24, resize=32))
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_the_middle_of_a_stretched_image_is_cut(tmp_path):
    draw = np.random.default_rng(0).integers(0, 256, (50, 91, 3), dtype=np.uint8)
    Image.fromarray(draw).save(tmp_path / "a.png")
    wanted = Image.fromarray(draw).resize((32, 32), Image.Resampling.BILINEAR).crop((4, 4, 28, 28))
    ours, _ = images.read(tmp_path / "a.png", pixels.Pixels(size=24, resize=32, square=True))
    assert np.array_equal(np.asarray(ours), np.asarray(wanted))


def test_crop_cuts_the_middle_and_by_default_the_image_is_stretched(tmp_path):
    image = np.zeros((24, 48, 3), dtype=np.uint8)
    image[:, 12:36] = 200  # the middle
    Image.fromarray(image).save(tmp_path / "a.png")
    for crop, least in ((True, 200), (False, 0)):
        chosen = pixels.choose(options(size=24, crop=crop), 3, None)
        assert images.stack([tmp_path / "a.png"], chosen).images.min() == least


def test_of_several_outputs_it_is_said_which_is_taken(here, capsys):
    assert cli.main(given(here / "p.pt", model="reader_net:pair", budget=0.2, max_drop=0.1)) == 0
    assert "the network gives a tuple; the first of 2 outputs is taken" in capsys.readouterr().out


def test_the_order_of_classes():
    names = ["10", "2", "1"]
    assert numbered(names, options()) == {"1": 0, "10": 1, "2": 2}, "as ImageFolder"
    assert numbered(names, options(natural=True)) == {"1": 0, "2": 1, "10": 2}
    assert numbered(names, options(class_index=True)) == {"1": 1, "2": 2, "10": 10}
    assert numbered(["img10", "img9"], options(natural=True)) == {"img9": 0, "img10": 1}
    with pytest.raises(ConfigError, match="'a' is no class number"):
        numbered(["1", "a"], options(class_index=True))
    with pytest.raises(ConfigError, match="different ways"):
        options(natural=True, class_index=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("n.txt", "cat\ndog\n"),
        ("n.json", '["cat", "dog"]'),
        ("n.json", '{"cat": 0, "dog": 1}'),
        ("n.json", '{"0": "cat", "1": "dog"}'),
        ("n.json", '{"0": ["n01", "cat"], "1": ["n02", "dog"]}'),
    ],
)
def test_class_names_come_in_several_forms(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert {key: number for key, number in read_names(tmp_path / name).items() if key[0] != "n"} == {"cat": 0, "dog": 1}
    with pytest.raises(ConfigError, match="does not name the folder 'cow'"):
        numbered(["cow"], options(class_names=tmp_path / name))


def test_a_target_is_a_name_or_a_number_and_never_both():
    names = {0: "1", 1: "14", 2: "2"}
    assert class_of("index:1", names) == 1
    assert class_of("name:14", names) == 1
    assert class_of("7", names) == 7
    assert class_of("2", names) == 2
    with pytest.raises(ConfigError, match="write name:14 or index:14"):
        class_of("14", names)


def test_the_target_is_echoed(here, capsys):
    cli.main(given(here / "p.pt", triggered="stamped", target="crow"))
    assert "target: class 2, the folder 'crow'" in capsys.readouterr().out


def test_parts_of_a_data_set_are_no_classes(here, capsys):
    for part in ("train", "val"):
        shutil.copytree("clean", here / "data" / part)
    assert cli.main(given(here / "p.pt", images=here / "data")) == 2
    assert "holds train and val, which are parts of a data set" in capsys.readouterr().err


def test_folders_of_numbers_are_told_their_order(here, capsys):
    clean = renamed(here, dict(zip(NAMES, ("1", "10", "2"), strict=True)))
    assert cli.main(given(here / "p.pt", images=clean)) in (0, 1)
    assert "numbered as text, as ImageFolder does: 1 is class 0" in capsys.readouterr().out


def written(path: Path, what: str) -> Path:
    """An image that is easily misread."""
    grey = np.linspace(0, 65535, 600).reshape(20, 30)
    colours = Image.fromarray(np.full((20, 30, 3), 99, dtype=np.uint8))
    if what == "16 bits":
        Image.fromarray(grey.astype(np.uint16)).save(path / "a.png")
    elif what == "floats":
        Image.fromarray((grey / 65535).astype(np.float32)).save(path / "a.tif")
    elif what == "transparent":
        colours.putalpha(Image.fromarray((grey / 257).astype(np.uint8)))
        colours.save(path / "a.png")
    elif what == "opaque":
        colours.putalpha(255)
        colours.save(path / "a.png")
    elif what == "animated":
        colours.save(path / "a.gif", save_all=True, append_images=[Image.new("RGB", (30, 20), "red")])
    elif what == "still":
        colours.save(path / "a.gif")
    elif what == "avif":
        colours.save(path / "a.avif", quality=100)
    elif what == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        pixels = np.zeros((20, 30, 3), dtype=np.uint8)
        pixels[:, :15] = 200  # the left half is the top half once it is turned
        Image.fromarray(pixels).save(path / "a.png", exif=exif)
    elif what == "huge":
        Image.new("L", (10_000, 6_000)).save(path / "a.png")
    return next(path.glob("a.*"))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("floats", "float values"),
        ("transparent", "transparent pixels"),
        ("animated", "holds 2 frames"),
        ("huge", "10000 x 6000 pixels"),
    ],
)
def test_an_image_that_would_be_misread_is_refused_by_name(tmp_path, what, message):
    path = written(tmp_path, what)
    with pytest.raises(ConfigError, match=rf"{path.name} .*{message}.*--skip-bad-images"):
        images.stack([path], PIXELS)
    skipped = images.stack([path], PIXELS, skip=True)
    assert len(skipped.images) == 0
    assert message in skipped.skipped[0]


def test_an_image_is_read_as_what_it_holds_and_no_other_program_is_run(tmp_path):
    """Pillow would hand PostScript to Ghostscript, whatever the file is called."""
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n")
    with Image.open(path) as image:
        assert image.format == "EPS"
    with pytest.raises(ConfigError, match=r"cannot be read as an image \(UnidentifiedImageError\)"):
        images.read(path, PIXELS)


def test_a_narrow_image_is_not_enlarged_without_bound(tmp_path):
    Image.new("L", (300_000, 1)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="300000 x 1 pixels would be enlarged to 76800000 x 256"):
        images.read(tmp_path / "a.png", Pixels(size=224, resize=256))
    assert images.read(tmp_path / "a.png", PIXELS)[0].size == (24, 24)


@pytest.mark.parametrize("what", ["opaque", "still", "avif"])
def test_other_kinds_of_images_are_read(tmp_path, what):
    image = images.stack([written(tmp_path, what)], PIXELS).images[0]
    assert (image.int() - 99).abs().max() <= 3


def test_sixteen_bits_keep_their_range(tmp_path):
    image = images.stack([written(tmp_path, "16 bits")], PIXELS).images[0, 0].float()
    assert image[0].mean() < 20
    assert image[-1].mean() > 235
    assert 120 < image.mean() < 135


def test_a_turned_photograph_is_read_upright(tmp_path):
    stacked = images.stack([written(tmp_path, "turned")], PIXELS)
    assert stacked.images[0, 0, :10].min() > 150
    assert stacked.images[0, 0, 14:].max() < 50
    assert "turned upright" in stacked.notes[0]


def test_skipped_images_are_listed(here, capsys):
    clean = renamed(here, {name: name for name in NAMES})
    (clean / "crow" / "3.png").write_bytes(b"none")
    (clean / "crow" / "notes.txt").write_text("none")
    assert cli.main(given(here / "p.pt", images=clean, skip_bad_images=True, json=here / "p.json")) in (0, 1)
    printed = capsys.readouterr().out
    assert "skipped:" in printed
    assert "as no images: 1 of .txt" in printed
    results = json.loads((here / "p.json").read_text())
    assert len(results["images"]["skipped"]) == 1
    assert results["images"]["method"] + results["images"]["held_out"] == 41


def test_images_beyond_memory_are_refused_before_they_are_read():
    with pytest.raises(ConfigError, match="more than fit into 8 GiB; give up to 57065"):
        images.stack([Path("no.png")] * 10**6, pixels.Pixels())


def test_images_are_held_as_bytes(here):
    stacked = images.stack(images.anywhere(Path("clean")).paths, PIXELS).images
    assert stacked.dtype == torch.uint8
    assert stacked.shape == (42, 3, 24, 24)


def test_a_normalisation_that_the_network_cannot_take_is_not_what_it_wants(here):
    class Narrow(nn.Module):
        def forward(self, x):
            return torch.log(torch.softmax(100 * x.mean((2, 3)), 1))  # -inf on pixels from 0 to 255

    stacked = images.stack(images.anywhere(Path("clean")).paths, PIXELS).images
    labels = torch.tensor([2, 1, 0]).repeat_interleave(14)  # dove, blue jay, crow: red, green, blue is the brightest
    plain = replace(PIXELS, mean=(0.0,), std=(1.0,))
    assert gate.check(Narrow(), stacked, labels.flip(0), plain, {}, 3) == Rate(42, 42)


def test_a_class_number_beyond_all_bounds_is_refused(here, capsys):
    clean = renamed(here, dict(zip(NAMES, ("0", "1", "9" * 20), strict=True)))
    assert cli.main(given(here / "p.pt", images=clean, class_index=True)) == 2
    assert f"the folder '{'9' * 20}' is too large a class number" in capsys.readouterr().err


def test_a_network_whose_weights_are_frozen_is_measured_and_trained(here):
    (here / "frozen.py").write_text(
        "from reader_net import make\ndef frozen():\n    return make().requires_grad_(False)"
    )
    arguments = given(here / "p.pt", model=f"{here / 'frozen.py'}:frozen", method="channel", epochs=1)
    assert cli.main(arguments) in (0, 1)


def test_the_gate_gives_the_accuracy(here):
    import reader_net
    from safetensors.torch import load_file

    model = reader_net.make()
    model.load_state_dict(load_file("w.safetensors"))
    stacked = images.stack(images.anywhere(Path("clean")).paths, PIXELS).images
    labels = torch.arange(3).repeat_interleave(14)
    assert gate.check(model.eval(), stacked, labels, PIXELS, {}, 3) == Rate(42, 42)
