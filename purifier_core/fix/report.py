"""The report of `purifier fix`: was there a backdoor, what was done, what changed, what next, what is not promised."""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch

from purifier_core.fix.limits import limits
from purifier_core.fix.markup import figure, gallery, items, page, picture, table
from purifier_core.fix.measure import Comparison, Rate
from purifier_core.fix.options import Options
from purifier_core.fix.outcome import Finding, headline
from purifier_core.fix.pixels import Pixels
from purifier_core.scanning import NOTHING, Findings, verdict
from purifier_core.stamps import picture as picture_of
from purifier_core.training import Effort

SHOWN = 6  # pictures of a kind, and units before the rest is folded away


@dataclass(frozen=True)
class Shown:
    """Images (N, C, H, W), uint8, with their paths, and where bounds cut them (N, H, W), if there are bounds."""

    paths: list[Path]
    images: torch.Tensor
    heat: torch.Tensor | None = None


@dataclass(frozen=True)
class Facts:
    """What a run knows beside its measurements. clean: the held-out images in the order of the comparison's."""

    options: Options
    pixels: Pixels
    names: dict[int, str]
    outputs: int  # classes that the model knows
    working: int  # images that the method used
    clean: Shown
    triggered: Shown | None
    effort: Effort
    seconds: float
    date: str
    read: str  # SHA-256 of the weights that were read
    entry: str  # of the file that they were under
    provenance: dict[str, Any]
    findings: tuple[Finding, ...] = ()
    choice: str = ""  # what the method chose
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    scan: Findings | None = None

    @property
    def scan_verdict(self) -> str:
        """The scan's verdict."""
        return "not looked for" if self.scan is None else self.scan.verdict

    def name(self, label: int) -> str:
        """A class by its folder's name and its number."""
        name = self.names.get(label, str(label))
        return f"class {label}" if name.isdecimal() and int(name) == label else f"{name} ({label})"


def summary(facts: Facts, comparison: Comparison) -> list[str]:
    """What changed, in lines of text."""
    lines = [f"{name}: {before} before, {after} after" for name, (before, after) in comparison.rates().items()]
    lines += [f"predictions changed: {comparison.changed} of {comparison.changed.count} held-out images"]
    return [*lines, headline(facts.options, comparison, facts.findings)]


def whole(facts: Facts, comparison: Comparison, written: str) -> str:
    """The report as HTML; `written` is the SHA-256 of the purified weights."""
    options = facts.options
    title = f"Report on {options.weights.name}"
    result = headline(options, comparison, facts.findings).removesuffix(".") + "."
    mark = "finding" if facts.findings else "fine"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="result {mark}">{escape(result)}</p>',
        "<h2>Was there a backdoor?</h2>",
        *_backdoor(facts, comparison),
        "<h2>What was done</h2>",
        f"<p>{escape(_done(facts, comparison))}</p>",
        "<h2>What changed</h2>",
        _rates(facts, comparison),
        '<div class="box"><h2>What to do next</h2>',
        items(_advice(facts, comparison)),
        "</div>",
        "<h2>What this cannot promise</h2>",
        items(limits(options, comparison)),
        *_pictures(facts, comparison),
        *_units(comparison),
        "<h2>Loading it</h2>",
        _loading(facts),
        "<h2>How it was made</h2>",
        _made(facts, comparison, written),
    ]
    return page(title, parts)


def _backdoor(facts: Facts, comparison: Comparison) -> list[str]:
    """A scan's verdict with the stamps that it found; without one, what the triggered images say."""
    if facts.scan is not None:
        first, *families = verdict(facts.scan, facts.names)
        pairs = sorted(zip(facts.scan.candidates, families, strict=True), key=lambda pair: pair[0].p)
        figures = [figure([picture(picture_of(best.stamp).cpu())], text, [text]) for best, text in pairs]
        return [
            f"<p>The scan: {escape(first)}. Each stamp is what carries images to its class best.</p>",
            gallery(figures),
            *_seen(facts, comparison),
        ]
    return _seen(facts, comparison) or [
        "<p>This was not looked for: <code>--scan</code> does. The method is the same for a clean network and for a "
        "backdoored one.</p>"
    ]


def _seen(facts: Facts, comparison: Comparison) -> list[str]:
    """What the given model said to the triggered images, where there are any."""
    if "ASR" not in comparison.rates():
        return []
    before, _ = comparison.rates()["ASR"]
    assert comparison.target is not None
    whose = "the class that it predicts most often" if comparison.guessed else "the target"
    text = f"The given model took {before} of the triggered images for {facts.name(comparison.target)}, {whose}."
    return [f"<p>{escape(text)}</p>"]


def _done(facts: Facts, comparison: Comparison) -> str:
    options, method = facts.options, facts.options.method
    if options.repairs and facts.scan is not None and facts.scan.verdict == NOTHING:
        unlearned = "what stands out most was unlearned anyway" if options.anyway else "nothing was unlearned"
        method = f"{method}: {unlearned}, and bounds of granularity feature were put"
    units = f"{method} at {len(comparison.sites)} units of the network{facts.choice}"
    return (
        f"{units}, from {facts.working:,} clean images; {comparison.changed.count:,} others were held out to measure."
    )


def _advice(facts: Facts, comparison: Comparison) -> list[str]:
    lines = [finding.advice for finding in facts.findings]
    if not lines:
        lines.append("Measure the purified network on test data of your own before you use it.")
    if comparison.triggered_before is None:
        lines.append("If you have images that carry a trigger, give them as --triggered.")
    return [*lines, "Keep the given weights: they are the evidence."]


def _rates(facts: Facts, comparison: Comparison) -> str:
    rows = []
    for name, (before, after) in comparison.rates().items():
        about = {
            "ACC": "accuracy on held-out clean images",
            "ASR": "triggered images predicted as ",
            "RA": "triggered images of other classes predicted as their own",
        }[name]
        if comparison.target is not None and name == "ASR":
            guess = ", the class most predicted before" if comparison.guessed else ", the target"
            about += facts.name(comparison.target) + guess
        rows.append([escape(f"{name}: {about}"), _rate(before), _rate(after), f"{before.count:,}"])
    rates_table = table(["", "before", "after", "images"], rows) if rows else ""
    moved = comparison.before != comparison.after
    changed = comparison.changed
    text = f"<p>{changed.hits:,} of {changed.count:,} held-out predictions changed: {changed}"
    if comparison.labels is None:
        return f"{rates_table}{text}. Without labels there is no accuracy.</p>"
    lost = int((moved & (comparison.before == comparison.labels)).sum())
    won = int((moved & (comparison.after == comparison.labels)).sum())
    note = f", {lost:,} from right to wrong and {won:,} from wrong to right.</p>"
    return f"{rates_table}{text}{note}<p>Beside each share its 95 % interval (Wilson).</p>"


def _pictures(facts: Facts, comparison: Comparison) -> list[str]:
    """Triggered images beside clean ones with what was cut, and the clean images that are now predicted otherwise."""
    parts, some = [], list(range(min(SHOWN, len(facts.clean.paths))))
    heats = [shown.heat for shown in (facts.clean, facts.triggered) if shown is not None and shown.heat is not None]
    scale = float(torch.cat([heat.flatten() for heat in heats]).quantile(0.995)) if heats else 1.0
    if facts.triggered is not None and comparison.triggered_before is not None:
        parts.append("<h2>Triggered and clean images</h2>")
        if heats:
            parts.append("<p>Red is where bounds cut activations off, on one scale for all pictures.</p>")
        places = _spread(len(facts.triggered.paths))
        first, then = comparison.triggered_before, comparison.triggered_after
        assert then is not None
        parts += ["<h3>Triggered</h3>", _gallery(facts, facts.triggered, places, first, then, scale)]
        parts += ["<h3>Clean</h3>", _gallery(facts, facts.clean, some, comparison.before, comparison.after, scale)]
    if changed := torch.nonzero(comparison.before != comparison.after).flatten()[:SHOWN].tolist():
        parts.append("<h2>Clean images that are predicted otherwise</h2>")
        parts.append(_gallery(facts, facts.clean, changed, comparison.before, comparison.after, scale))
    return parts


def _spread(count: int) -> list[int]:
    """Up to SHOWN places among `count`, evenly apart: files are sorted, and the first are all of one class."""
    return sorted({number * count // SHOWN for number in range(SHOWN)}) if count else []


def _gallery(
    facts: Facts, shown: Shown, places: Iterable[int], before: torch.Tensor, after: torch.Tensor, scale: float
) -> str:
    figures = []
    for place in places:
        first, then = facts.name(int(before[place])), facts.name(int(after[place]))
        sources = [picture(shown.images[place])]
        if shown.heat is not None:
            sources.append(picture(shown.images[place], shown.heat[place], scale))
        name = shown.paths[place].name
        caption = f"predicted {first}" if first == then else f"predicted {first} → {then}"
        figures.append(figure(sources, name, [caption, name]))
    return gallery(figures)


def _units(comparison: Comparison) -> list[str]:
    """What units suppress of triggered images, against clean ones; alone the shares would say nothing."""
    if comparison.triggered_suppressed is None:
        return []
    rows = [
        [escape(site), *(f"{100 * share:.2f} %" for share in shares if share is not None)]
        for site, *shares in comparison.most()
    ]
    head = ["unit", "clean", "triggered"]
    note = "<p>The share of its activation that a unit takes away, in the mean over images. Compare the columns.</p>"
    parts = ["<h2>Which units suppress</h2>", note, table(head, rows[:SHOWN])]
    if rest := rows[SHOWN:]:
        parts.append(f"<details><summary>{len(rest)} more</summary>{table(head, rest)}</details>")
    return parts


def _loading(facts: Facts) -> str:
    options = facts.options
    source, _, factory = options.model.partition(":")
    count = "" if options.classes is None else f"num_classes={options.classes}"
    module = Path(source).stem if source.endswith(".py") else source
    imports, call = f"from {module} import {factory}", f"{factory}({count})"
    if source in ("timm", "torchvision"):
        imports = "import timm" if source == "timm" else "from torchvision.models import get_model"
        more = f", {count}" if count else ""
        call = f"timm.create_model({factory!r}{more})" if source == "timm" else f"get_model({factory!r}{more})"
    code = f"from purifier_core.fix.weights import load\n{imports}\n\nnetwork = load({call}, {options.out.name!r})"
    return (
        f"<pre>{escape(code)}</pre><p>It takes what the model took: {escape(str(facts.pixels))}. "
        "<code>purifier_core.sites.detach(network)</code> takes the units out again.</p>"
    )


def _made(facts: Facts, comparison: Comparison, written: str) -> str:
    options, effort, versions = facts.options, facts.effort, facts.provenance["versions"]
    device = facts.provenance["device"]
    entry = f", entry {facts.entry!r}" if facts.entry else ""
    classes = ", ".join(facts.name(number) for number in sorted(facts.names)) or "no labels"
    rows = [
        ["images", f"{facts.working:,} for the method, {comparison.changed.count:,} held out and only measured"],
        ["pixels", str(facts.pixels)],
        ["classes", f"{facts.outputs} outputs; folders: {classes}"],
        ["effort", f"passes over the images: {effort.epochs:g}, images in all: {effort.images:,}"],
        ["time", f"{effort.seconds:.1f} s for the method, {facts.seconds:.1f} s in all, on {device}"],
        ["model", options.model],
        ["weights read", f"{options.weights.name}{entry}, SHA-256 {facts.read}"],
        ["weights written", f"{options.out.name}, SHA-256 {written}"],
        ["seed", str(options.seed)],
        ["versions", ", ".join(f"{name} {version}" for name, version in versions.items())],
        ["date", facts.date],
    ]
    if facts.triggered is not None:
        rows.insert(1, ["triggered images", f"{len(facts.triggered.paths):,}, only measured"])
    rows += [["note", note] for note in (*facts.notes, *(f"skipped: {text}" for text in facts.skipped))]
    return table(["", ""], [[escape(a), escape(b)] for a, b in rows], "prose")


def _rate(rate: Rate) -> str:
    share, _, interval = str(rate).partition(" (")
    return f"{share} <small>({interval}</small>"
