"""The HTML that the report of `purifier fix` is made of: tables, pictures, and one style."""

import base64
import io
from collections.abc import Iterable
from html import escape

import torch

THUMBNAIL = 128  # pixels
_HEAT = torch.tensor([220.0, 30.0, 60.0]).view(3, 1, 1)


def table(head: list[str], rows: Iterable[list[str]], kind: str = "numbers") -> str:
    """A table of cells that are HTML already; the first of each row is its head."""
    top = "".join(f"<th>{name}</th>" for name in head)
    body = "".join(f"<tr><th>{row[0]}</th>{''.join(f'<td>{v}</td>' for v in row[1:])}</tr>" for row in rows)
    header = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table class="{kind}">{header}<tbody>{body}</tbody></table></div>'


def items(lines: Iterable[str]) -> str:
    """A list of lines of text."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def picture(image: torch.Tensor, heat: torch.Tensor | None = None, scale: float = 1.0) -> str:
    """An image (C, H, W), uint8, as the source of an img element; heat (H, W) is laid over it in red, full at scale."""
    from PIL import Image

    pixels = image.float().expand(3, -1, -1)
    if heat is not None:
        strength = 0.85 * (heat / max(scale, 1e-12)).clamp(0, 1)
        grey = 0.3 * pixels.mean(0, keepdim=True) + 0.7 * 255  # so that red stands out
        pixels = grey.expand(3, -1, -1) * (1 - strength) + _HEAT * strength
    drawn = Image.fromarray(pixels.byte().permute(1, 2, 0).numpy())
    drawn.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    drawn.save(content, format="PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def figure(sources: list[str], name: str, lines: Iterable[str]) -> str:
    """One or two pictures with a name and lines of text below."""
    images = "".join(
        f'<img src="{source}" alt="{escape(name)}{extra}">'
        for source, extra in zip(sources, ("", ", cut"), strict=False)
    )
    return f"<figure>{images}<figcaption>{'<br>'.join(map(escape, lines))}</figcaption></figure>"


def gallery(figures: Iterable[str]) -> str:
    """Figures side by side."""
    return f'<div class="gallery">{"".join(figures)}</div>'


def page(title: str, parts: Iterable[str]) -> str:
    """The whole page, which needs nothing beside it."""
    body = "\n".join(parts)
    return (
        f"{_HEAD}<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


_STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --page: #fff; --line: #d0d4d9; --soft: #f3f4f6; --bar: #7c3aed;
  --fine: #15803d; --finding: #c2410c; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e6e9; --page: #15171a; --line: #3b4046; --soft: #22262a; --bar: #b794f6;
    --fine: #4ade80; --finding: #fb923c; }
}
body { max-width: 52rem; margin: 0 auto; padding: 1rem; color: var(--text); background: var(--page);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } h3 { font-size: 1rem; }
.scroll { overflow-x: auto; border-block: 1px solid var(--line); }
table { border-collapse: collapse; min-width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: left; vertical-align: baseline; }
thead th { border-bottom: 1px solid var(--line); } tbody th { font-weight: 400; }
thead th, td, .prose th { overflow-wrap: normal; } .prose td { overflow-wrap: anywhere; }
.numbers tbody th { min-width: 7rem; } small, thead th { white-space: nowrap; }
.box { border: 2px solid var(--bar); border-radius: .4rem; padding: 0 1rem; }
.result { font-size: 1.1rem; border-left: .3rem solid var(--fine); padding-left: .8rem; }
.result.finding { border-color: var(--finding); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(11rem, 44%), 1fr)); gap: 1rem; }
figure { margin: 0; } figure img { width: 50%; image-rendering: auto; } figure img:only-of-type { width: 75%; }
figcaption { font-size: .8rem; }
@media (max-width: 30rem) {
  th, td { padding: .35rem .3rem; } .numbers tbody th { min-width: 5.5rem; } ul { padding-left: 1.2rem; }
}
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
