"""What this book asks of Sphinx: pages that never compute, and drawings that follow the page's colours."""

import os
from pathlib import Path
from typing import Any

import figures
import live
import warm
from docutils import nodes
from granularities import drawing
from sphinx.application import Sphinx
from sphinx.directives.patches import Figure
from sphinx.util.docutils import SphinxDirective

from purifier_core.lab import tidy
from purifier_core.lab.records import Store

DRAWINGS = {"granularities": drawing}
LIVE = {"page": live.picture, "table": live.table}


class DrawnFigure(Figure):
    """A numbered figure whose image is inline SVG: `{drawn-figure} granularities` with the options of `figure`."""

    def run(self) -> list[nodes.Node]:
        """Replace the image node that `figure` makes by the drawing of that name."""
        draw = DRAWINGS[self.arguments[0]]
        figure, *messages = super().run()
        for image in list(figure.findall(nodes.image)):
            image.parent.replace(image, nodes.raw("", draw(image.get("alt", "")), format="html"))
        return [figure, *messages]


class Live(SphinxDirective):
    """A part of the page "Try it": `{live} page` or `{live} table`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The part as HTML."""
        return [nodes.raw("", LIVE[self.arguments[0]](), format="html")]


class DownloadNumbers(SphinxDirective):
    """Links to the table of all records, which `write_numbers` writes."""

    def run(self) -> list[nodes.Node]:
        """The links as HTML."""
        up = "../" * self.env.docname.count("/")
        files = {"results.csv": "the table", "results.datapackage.json": "its description"}
        links = [f'<a href="{up}_static/{file}" download>{file}</a> ({about})' for file, about in files.items()]
        return [nodes.raw("", f"<p>{' and '.join(links)}</p>", format="html")]


def write_numbers(app: Sphinx, problem: Exception | None) -> None:
    """Put the table of all records and its description beside the pages."""
    if problem is None and app.builder.name == "html":
        tidy.export(Store(), Path(app.outdir) / "_static" / "results.csv")


def name_repository(app: Sphinx, config: Any) -> None:
    """A link to the repository, where its public home is known: GITHUB_REPOSITORY, as GitHub sets it, is owner/name."""
    if home := os.environ.get("GITHUB_REPOSITORY"):
        config.html_theme_options |= {
            "repository_url": f"https://github.com/{home}",
            "repository_branch": os.environ.get("GITHUB_REF_NAME", "main"),
            "path_to_docs": "",
            "use_repository_button": True,
        }


def offer_to_run(app: Sphinx, page: str, *_: Any) -> None:
    """Binder and Colab buttons on the notebooks; the pages of text have cells too, but neither service opens them."""
    if "GITHUB_REPOSITORY" in os.environ:
        services = {"binderhub_url": "https://mybinder.org", "colab_url": "https://colab.research.google.com"}
        buttons = services | {"notebook_interface": "jupyterlab"} if page.startswith("notebooks/") else {}
        app.config.html_theme_options["launch_buttons"] = buttons


def read_side_by_side(app: Sphinx) -> None:
    """Read the pages in a process for each core. Two extensions do not say whether this is safe: one numbers sections
    when all pages are read, the other acts when LaTeX is written."""
    if hasattr(os, "fork"):
        warm.start()  # before the processes that share it
        for name in ("sphinx_multitoc_numbering", "sphinx_jupyterbook_latex"):
            app.extensions[name].parallel_read_safe = True
        app.parallel = min(4, os.cpu_count() or 1)


def write_in_one(app: Sphinx, env: Any) -> None:
    """Write the pages in this process, which notes what they need."""
    app.parallel = 1


def read_every_page(app: Sphinx, env: Any, *_: Any) -> set[str]:
    """Name every page as outdated: Sphinx sees changed pages, not changed records."""
    return env.found_docs


def drop_thebe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Leave out the scripts of a button that this book does not have; they name a CDN."""
    scripts = context["script_files"]
    context["script_files"] = [s for s in scripts if "thebe" not in f"{s.filename} {s.attributes}".lower()]


def name_images(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Give an image glued from another page, which comes without a text, that of the paragraph before it."""
    paragraph = ""
    for node in doctree.findall(lambda n: isinstance(n, (nodes.paragraph, nodes.image))):
        if isinstance(node, nodes.paragraph):
            paragraph = node.astext() or paragraph
        elif "alt" not in node:
            node["alt"] = paragraph


def draw_inline(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Put figures into the page itself, where they take its colours; an image could not."""
    for image in list(doctree.findall(nodes.image)):
        if image["uri"].endswith(".svg") and app.builder.format == "html":
            drawn = figures.inlined(Path(app.srcdir) / image["uri"].lstrip("/"), image.get("alt", ""))
            image.parent.replace(image, nodes.raw("", drawn, format="html"))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive and the hooks, and let every notebook only read the committed records."""
    os.environ["PURIFIER_RECORDS_ONLY"] = "1"
    warm.offer()
    app.add_directive("drawn-figure", DrawnFigure)
    app.connect("config-inited", name_repository)
    app.connect("html-page-context", offer_to_run, priority=1)  # before the theme, which makes the buttons
    app.connect("builder-inited", read_side_by_side)
    app.connect("env-get-outdated", read_every_page)
    app.connect("env-updated", write_in_one)
    app.connect("doctree-resolved", name_images)
    app.connect("doctree-resolved", draw_inline)
    app.add_directive("live", Live)
    app.connect("html-page-context", live.add)
    app.connect("html-page-context", drop_thebe, priority=900)  # after whatever adds scripts
    app.add_directive("download-numbers", DownloadNumbers)
    app.connect("build-finished", live.write)
    app.connect("build-finished", write_numbers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
