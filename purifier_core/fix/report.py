"""The report of `purifier fix`: one HTML page that needs nothing beside it."""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from purifier_core.fix import images
from purifier_core.fix.measure import Comparison, Rate
from purifier_core.fix.options import Options
from purifier_core.training import Effort

SHOWN = 12  # images in the gallery, and units before the rest is folded away
_THUMBNAIL = 128  # pixels


@dataclass(frozen=True)
class Facts:
    """What a run knows beside its measurements. paths: the held-out images in the order of the comparison's."""

    options: Options
    classes: tuple[str, ...]
    paths: list[Path]
    effort: Effort
    seconds: float
    date: str
    read: str  # SHA-256 of the weights that were read
    provenance: dict[str, Any]
    outputs: int  # classes that the model knows
    choice: str = ""  # what the method chose

    def name(self, label: int) -> str:
        """A class by its folder's name where it has one."""
        return self.classes[label] if label < len(self.classes) else f"class {label}"


def summary(facts: Facts, found: Comparison) -> list[str]:
    """What changed, in lines of text."""
    lines = [f"{name}: {before} before, {after} after" for name, (before, after) in found.rates().items()]
    return [*lines, f"predictions changed: {found.changed} of {found.changed.count} held-out images"]


def limits(options: Options, found: Comparison) -> list[str]:
    """What the result does not show, for this method and these inputs."""
    lines = [
        "No proof that the network is clean: neither an accuracy that stays nor a small suppression says that no "
        "backdoor is left."
    ]
    if found.triggered_before is None:
        lines.append(
            "Without images that carry the attacker's trigger (--triggered) the attack success rate cannot be "
            "measured. It is unknown, not low."
        )
    else:
        lines.append("The ASR holds for the trigger in the given images. Another trigger may work on.")
    if found.guessed:
        lines.append(
            "The target was not given. The ASR counts the class that the model before predicted most often for the "
            "triggered images, which need not be the attacker's."
        )
    if options.bounds:
        lines += [
            "Bounds cut off what no clean image reaches. A trigger whose activations stay below them passes: in this "
            "project's measurements on full datasets Blend's and SIG's, faint and all over the image, mostly did.",
            "An attacker who expects bounds may train a network to stay below them.",
        ]
    else:
        lines.append(
            "Training starts from the given weights, backdoor included. In this project's measurements that left "
            "BadNets in place with granularity channel and feature, and cost much accuracy with cube; bounds of "
            "granularity feature removed it, or nearly."
        )
    return [
        *lines,
        "The clean images are taken to be clean. A few stamped ones among them can be enough to let the trigger pass.",
        "Held-out images come from the same folder. On other data the accuracy may be different; if the model was "
        "trained on these images, it is likely lower elsewhere, before and after.",
        "The intervals are about the choice of images alone, not about another seed or another training.",
    ]


def page(facts: Facts, found: Comparison, written: str) -> str:
    """The report as HTML; `written` is the SHA-256 of the purified weights."""
    options = facts.options
    parts = [
        f"<h1>{escape(options.weights.name)}, purified</h1>",
        f"<p>{escape(options.method)}, {escape(facts.date)}</p>",
        "<h2>Before and after</h2>",
        _rates(facts, found),
        "<h2>What this cannot promise</h2>",
        _items(map(escape, limits(options, found))),
        "<h2>Which units suppress most</h2>",
        f"<p>{_meaning(options)}</p>",
        _units(found),
        "<h2>Which images are suppressed most</h2>",
        "<p>Of the held-out clean images. Look for what they have in common; unusual clean images stand here too.</p>",
        _gallery(facts, found),
        "<h2>Loading it</h2>",
        _loading(facts),
        "<h2>How it was made</h2>",
        _made(facts, found, written),
    ]
    title = escape(f"{options.weights.name}, purified")
    body = "\n".join(parts)
    return f"{_HEAD}<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"


def _rates(facts: Facts, found: Comparison) -> str:
    rows = []
    for name, (before, after) in found.rates().items():
        about = {"ACC": "accuracy on held-out clean images", "ASR": "triggered images predicted as "}[name]
        if found.target is not None and name == "ASR":
            guess = ", the class most predicted before" if found.guessed else ", the target"
            about += facts.name(found.target) + guess
        rows.append([escape(f"{name}: {about}"), _rate(before), _rate(after), f"{before.count:,}"])
    table = _table(["", "before", "after", "images"], rows) if rows else ""
    moved = found.before != found.after
    changed = f"<p>{found.changed.hits:,} of {found.changed.count:,} held-out predictions changed: {found.changed}"
    if found.labels is None:
        return f"{table}{changed}. Without labels there is no accuracy.</p>"
    lost = int((moved & (found.before == found.labels)).sum())
    won = int((moved & (found.after == found.labels)).sum())
    few = len(facts.classes)
    numbered = "" if few == facts.outputs else f"; the {few} folders are taken for the first of {facts.outputs} classes"
    note = f", {lost:,} from right to wrong and {won:,} from wrong to right.</p>"
    return f"{table}{changed}{note}<p>Beside each share its 95 % interval (Wilson){numbered}.</p>"


def _meaning(options: Options) -> str:
    if options.bounds:
        return (
            "The share of a unit's activation F that its bounds u cut off, sum(F - min(F, u)) / sum(|F|), over the "
            "held-out images; for an image, the same over all units."
        )
    return (
        "The share of a unit's activation F that its mask m takes away, 1 - |F m| / |F| in Euclidean norms and not "
        "below 0, in the mean over the held-out images; for an image, in the mean over all units. Masks are "
        "weights that the layers after them are trained with, so compare units and images, not the value with 0."
    )


def _units(found: Comparison) -> str:
    stamped = found.triggered_suppressed is not None
    rows = [[escape(site), *(_bar(share) for share in shares if share is not None)] for site, *shares in found.most()]
    head = ["unit", "clean", *(["triggered"] if stamped else [])]
    means = [found.suppressed, *([found.triggered_suppressed] if found.triggered_suppressed else [])]
    mean = "; ".join(
        f"{name} images {_percent(float(s.by_image.mean()))}" for name, s in zip(head[1:], means, strict=True)
    )
    shown = _table(head, rows[:SHOWN]) + f"<p>In the mean over images: {mean}.</p>"
    if rest := rows[SHOWN:]:
        shown += f"<details><summary>{len(rest)} more</summary>{_table(head, rest)}</details>"
    return shown


def _gallery(facts: Facts, found: Comparison) -> str:
    shares = found.suppressed.by_image
    figures = []
    for place in shares.argsort(descending=True)[:SHOWN].tolist():
        path, before, after = facts.paths[place], int(found.before[place]), int(found.after[place])
        told = [f"{_percent(float(shares[place]))} suppressed"]
        change = f"{facts.name(before)} → " if before != after else ""
        told.append(f"predicted {change}{facts.name(after)}")
        if found.labels is not None and int(found.labels[place]) != after:
            told.append(f"label {facts.name(int(found.labels[place]))}")
        source = _picture(path, facts.options.size)
        name = escape(str(path.relative_to(facts.options.images)))
        lines = "<br>".join(map(escape, told))
        figures.append(f'<figure><img src="{source}" alt="{name}"><figcaption>{lines}<br>{name}</figcaption></figure>')
    return f'<div class="gallery">{"".join(figures)}</div>'


def _picture(path: Path, size: int) -> str:
    image = images.read(path, min(size, _THUMBNAIL))
    content = io.BytesIO()
    image.save(content, format="PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def _loading(facts: Facts) -> str:
    options = facts.options
    module, _, factory = options.model.partition(":")
    count = "" if options.classes is None else f"num_classes={options.classes}"
    code = (
        f"from purifier_core.fix.weights import load\nfrom {module} import {factory}\n\n"
        f"network = load({factory}({count}), {options.out.name!r})"
    )
    pixels = {
        "imagenet": f"less the mean {images.MEAN} and divided by {images.STD}, channel by channel",
        "none": "with nothing subtracted",
    }[options.normalize]
    return (
        f"<pre>{escape(code)}</pre><p>It takes RGB images of {options.size} x {options.size} pixels, from 0 to 1, "
        f"{pixels}, and gives logits as the model did. <code>purifier_core.sites.detach(network)</code> takes the "
        "units out again.</p>"
    )


def _made(facts: Facts, found: Comparison, written: str) -> str:
    options, effort, versions = facts.options, facts.effort, facts.provenance["versions"]
    total = len(facts.paths)
    rows = [
        ["method", f"{options.method} at {len(found.sites)} units{facts.choice}"],
        [
            "images",
            f"{effort.images / max(effort.epochs, 1):,.0f} for the method, {total:,} held out and only measured",
        ],
        ["effort", f"passes over them: {effort.epochs:g}, images in all: {effort.images:,}"],
        [
            "time",
            f"{effort.seconds:.1f} s for the method, {facts.seconds:.1f} s in all, on {facts.provenance['device']}",
        ],
        ["classes", f"{facts.outputs} outputs" + _numbered(facts.classes)],
        ["model", options.model],
        ["weights read", f"{options.weights.name}, SHA-256 {facts.read}"],
        ["weights written", f"{options.out.name}, SHA-256 {written}"],
        ["seed", str(options.seed)],
        ["versions", ", ".join(f"{name} {version}" for name, version in versions.items())],
    ]
    if found.triggered_before is not None:
        rows.insert(2, ["triggered images", f"{len(found.triggered_before):,}, only measured"])
    return _table(["", ""], [[escape(a), escape(b)] for a, b in rows], "prose")


def _numbered(classes: tuple[str, ...]) -> str:
    if not classes:
        return "; no labels"
    return "; folders in the order of their names: " + ", ".join(f"{n} {name}" for n, name in enumerate(classes))


def _rate(rate: Rate) -> str:
    share, _, interval = str(rate).partition(" (")
    return f"{share} <small>({interval}</small>"


def _table(head: list[str], rows: Iterable[list[str]], kind: str = "numbers") -> str:
    top = "".join(f"<th>{name}</th>" for name in head)
    body = "".join(f"<tr><th>{row[0]}</th>{''.join(f'<td>{v}</td>' for v in row[1:])}</tr>" for row in rows)
    header = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table class="{kind}">{header}<tbody>{body}</tbody></table></div>'


def _bar(share: float) -> str:
    return f'{_percent(share)}<span class="bar" style="width:{4 * min(1.0, max(0.0, share)):.2f}rem"></span>'


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if share < 0.1 else f"{100 * share:.1f} %"


def _items(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"


_STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --page: #fff; --line: #d0d4d9; --soft: #f3f4f6; --bar: #7c3aed; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e6e9; --page: #15171a; --line: #3b4046; --soft: #22262a; --bar: #b794f6; }
}
body { max-width: 52rem; margin: 0 auto; padding: 1rem; color: var(--text); background: var(--page);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.scroll { overflow-x: auto; border-block: 1px solid var(--line); }
table { border-collapse: collapse; min-width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: left; vertical-align: baseline; }
thead th { border-bottom: 1px solid var(--line); } tbody th { font-weight: 400; }
thead th, td, .prose th { overflow-wrap: normal; } .prose td { overflow-wrap: anywhere; }
.numbers tbody th { min-width: 7rem; } small, thead th { white-space: nowrap; }
.bar { display: inline-block; height: .7em; margin-left: .5rem; background: var(--bar); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figure img { width: 100%; image-rendering: auto; } figcaption { font-size: .8rem; }
pre { padding: .75rem; overflow-x: auto; background: var(--soft); } details { margin-top: .75rem; }
"""

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
"""
