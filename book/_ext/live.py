"""What the page "Try it" needs at the build: its networks as classic scripts, and a picture of it for who runs none.

A page opened from disk may neither fetch a file nor load a module, so each committed file becomes a script that hands
its content in. Nothing is trained or computed here: pixels and numbers are those of data/zoo and data/try.
"""

import base64
import io
import json
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
ZOO, LIVE = ROOT / "data" / "zoo", ROOT / "data" / "try"
PAGE = "book/try"
FIRST = "mnist-badnets"
PICTURES, SIDE = 20, 32

DATASETS = {"mnist": "MNIST", "cifar10": "CIFAR-10"}
CLASSES = {
    "mnist": list("0123456789"),
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
}
ATTACKS = {"badnets": "BadNets", "blend": "Blend", "sig": "SIG"}
REPAIRS = {
    "none": "None",
    "bounds": "Bounds",
    "channel": "Purifier, Channel",
    "feature": "Purifier, Feature",
    "feature_random": "Feature from fresh weights",
    "scan_repair": "Scan and repair",
}


def networks() -> list[str]:
    """The page's networks, the first one first."""
    return sorted((path.name for path in LIVE.iterdir()), key=lambda name: (name != FIRST, name.startswith("c"), name))


def add(app: Sphinx, page: str, *_: Any) -> None:
    """Put the page's own scripts and style on it, and on no other."""
    if page == PAGE:
        app.add_css_file("try/try.css")
        app.add_js_file("try/engine.js", loading_method="defer")
        app.add_js_file("try/page.js", loading_method="defer")


def write(app: Sphinx, problem: Exception | None) -> None:
    """Write the scripts that hand in the networks."""
    if problem is None and app.builder.name == "html":
        out = Path(app.outdir) / "_static" / "try"
        _hand_in(out, "nets", {name: _about(name) for name in networks()})
        for name in networks():
            for path in (ZOO / name / "weights.safetensors", *sorted((LIVE / name).glob("*.safetensors"))):
                key = f"{name}/{'none' if path.stem == 'weights' else path.stem}"
                _hand_in(out, key, base64.b64encode(path.read_bytes()).decode())


def picture() -> str:
    """What stands on the page until its scripts run: the first picture with the trigger on it, and torch's answer."""
    about, labels = _about(FIRST), CLASSES["mnist"]
    stamp = _tensors(ZOO / FIRST / "trigger.safetensors")
    image = _pixels("mnist")[0].transpose(2, 0, 1)
    stamped = (stamp["keep"] * image + stamp["add"]).round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    answer = json.loads((LIVE / FIRST / "answers.json").read_text())["none"]["triggered"][0]
    says = int(np.argmax(answer))
    file = io.BytesIO()
    Image.fromarray(stamped).save(file, "png")
    source = base64.b64encode(file.getvalue()).decode()
    shown = labels[about["labels"][0]]
    sentence = f"A {shown} with the trigger on it: the network says {labels[says]} ({100 * answer[says]:.1f} %)."
    still = f'<img src="data:image/png;base64,{source}" alt="{escape(sentence)}">'
    return (
        f'<div class="try"><figure class="try-still">{still}'
        f"<figcaption><strong>{escape(sentence)}</strong> Here the network runs in the page, which needs JavaScript."
        "</figcaption></figure></div>"
    )


def table() -> str:
    """ACC and ASR of every network and repair of the page, as a table."""
    rows = ""
    for name in networks():
        about = _about(name)
        for repair in about["repairs"]:
            cells = (about["title"], repair["title"], f"{100 * repair['acc']:.2f}", f"{100 * repair['asr']:.2f}")
            head, *rest = (escape(cell) for cell in cells)
            rows += f"<tr><th>{head}</th>" + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>"
    heads = "".join(f"<th>{name}</th>" for name in ("repair", "ACC %", "ASR %"))
    return (
        '<div class="results-scroll"><table class="results" id="T_try"><thead><tr><th>network</th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _about(name: str) -> dict[str, Any]:
    """What the page knows of a network before it has the weights."""
    card = json.loads((ZOO / name / "card.json").read_text())
    dataset, attack = card["cell"]["dataset"], card["cell"]["attack"]
    pixels = _pixels(dataset)
    grey = bool((pixels[..., :1] == pixels).all())
    labels = json.loads((ZOO / "samples" / "samples.json").read_text())[dataset]["labels"][:PICTURES]
    found = {"none": card}
    for repair in REPAIRS:
        if (path := LIVE / name / f"{repair}.safetensors").exists():
            found[repair] = json.loads(_header(path)["__metadata__"]["notes"])
    return {
        "title": f"{DATASETS[dataset]}, {ATTACKS[attack]}",
        "classes": CLASSES[dataset],
        "target": card["target_class"],
        "labels": labels,
        "grey": grey,
        "pictures": base64.b64encode(pixels[..., : 1 if grey else 3].tobytes()).decode(),
        "trigger": base64.b64encode((ZOO / name / "trigger.safetensors").read_bytes()).decode(),
        "repairs": [
            {"name": repair, "title": REPAIRS[repair], "acc": notes["acc"], "asr": notes["asr"]}
            for repair, notes in found.items()
        ],
    }


def _pixels(dataset: str) -> np.ndarray:
    """The page's pictures (PICTURES, 32, 32, 3), uint8."""
    sheet = np.asarray(Image.open(ZOO / "samples" / f"{dataset}.png").convert("RGB"))
    rows, columns = sheet.shape[0] // SIDE, sheet.shape[1] // SIDE
    tiles = sheet.reshape(rows, SIDE, columns, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
    return tiles[:PICTURES]


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """The fp32 tensors of a safetensors file."""
    header, content = _header(path), path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    found = {}
    for name, tensor in header.items():
        if name != "__metadata__":
            first, last = (start + offset for offset in tensor["data_offsets"])
            found[name] = np.frombuffer(content[first:last], "<f4").reshape(tensor["shape"])
    return found


def _hand_in(out: Path, key: str, content: Any) -> None:
    path = out / f"{key}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"Try.give({json.dumps(key)}, {json.dumps(content)});\n")
