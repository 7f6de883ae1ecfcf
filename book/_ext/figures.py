"""matplotlib's SVG as part of a page, in the page's colours, light and dark.

White is the page's background. In the dark every other colour keeps its hue, and light and dark change places, so that
what stood out on white stands out still. Photographs stay as they are.
"""

import colorsys
import hashlib
import re
from html import escape
from pathlib import Path

SCALE = 160 / 72
"""The page's pixels for a point: a figure is as wide as its bitmap at 160 dots an inch, where there is room."""

DARKEST, LIGHTEST = 0.12, 0.92
"""The lightness in the dark theme of what is nearly white, and of black, in the light one."""


def inlined(path: Path, alt: str) -> str:
    """The figure of an SVG file as HTML; `alt` is read out in its place."""
    text = path.read_text()
    head = re.search(r'<svg [^>]*viewBox="([^"]+)"[^>]*>', text)
    if head is None:
        raise ValueError(f"{path} is not a figure of matplotlib's")
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", text[head.end() :], flags=re.S)
    own = "f" + hashlib.sha256(body.encode()).hexdigest()[:8]  # names are the page's, and it may have more figures
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{own}-", body)
    body = re.sub(r"#[0-9a-f]{6}\b", lambda found: themed(found.group()), body)
    width = float(head[1].split()[2]) * SCALE
    look = f'class="figure-drawn" style="max-width: {width:.0f}px" viewBox="{head[1]}" role="img"'
    return f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {look} aria-label="{escape(alt)}">{body}'


def themed(colour: str) -> str:
    """A CSS colour for both themes, of one such as "#c2410c" on white."""
    if colour == "#ffffff":
        return "var(--pst-color-background)"
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    turned = LIGHTEST - (LIGHTEST - DARKEST) * lightness
    channels = (round(255 * channel) for channel in colorsys.hls_to_rgb(hue, turned, saturation))
    return f"light-dark({colour}, #{''.join(f'{channel:02x}' for channel in channels)})"
