"""The site: docs/ as it is, the pages at the root, and a reference made from the code.

make docs
"""

import re
import subprocess
import sys
from pathlib import Path

from sphinx.application import Sphinx

from deit_zoo import __version__, info, list_models
from deit_zoo.page.speeds import read_curve
from deit_zoo.page.zoo_page import zoo_page

DOCS = Path(__file__).parent
REPOSITORY = "https://github.com/org/deit"  # org/deit stands for this repository's home
# Pages at the root that have one here.
ROOT_PAGES = {"README.md": "index.md", "CHANGELOG.md": "changes.md"}
ROOT_PAGES |= {"CONTRIBUTING.md": "contributing.md"}

project, author, version, release = "deit_zoo", "The deit_zoo developers", __version__, __version__
html_title = f"deit_zoo {version}"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
highlight_language = "none"
myst_heading_anchors = 3
nb_execution_mode = "off"  # a test runs the tour

default_role = "code"  # docstrings write names between single backticks
add_module_names = False
maximum_signature_line_length = 88
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autosummary_generate = False
# Types of others, and short names of ours, are not on this site.
nitpick_ignore_regex = [("py:class", r"(?!deit_zoo\.).*")]

html_theme = "furo"
pygments_dark_style = "a11y-high-contrast-dark"  # beside Furo's own in light
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_show_copyright = False
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}


def rooted(link: str) -> str:
    """A path from the root, as a link from docs/; what is no page here lies in the repository."""
    inside = link.removeprefix("docs/")
    return inside if inside != link else ROOT_PAGES.get(link, f"{REPOSITORY}/blob/main/{link}")


def relink_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Links that lead out of docs/."""
    source[0] = re.sub(r"\]\(\.\./([^)]+)", lambda link: f"]({rooted(link[1])}", source[0])
    picture = "](images/zoo.png)"  # here it leads to the page
    source[0] = source[0].replace(picture, f'{picture}\n\n<a href="zoo.html">Open this page</a>')


def relink_included(app: Sphinx, path: Path, page: str, source: list[str]) -> None:
    """Links of a page that lies at the root."""
    if path.name in ROOT_PAGES:
        local = r"\]\((?!https?:|#)([^)]+)"
        source[0] = re.sub(local, lambda link: f"]({rooted(link[1])}", source[0])


def put_commands(app: Sphinx, page: str, source: list[str]) -> None:
    """The reference of the command line, by typer, is the page `cli`."""
    if page == "cli":
        command = [sys.executable, "-m", "typer", "deit_zoo.cli.app", "utils", "docs"]
        command += ["--name=deit-zoo", "--title=The command line"]
        done = subprocess.run(command, cwd=DOCS.parent, check=True, stdout=subprocess.PIPE)
        source[0] = mended(done.stdout.decode())


def write_zoo(app: Sphinx, error: Exception | None) -> None:
    """The page of the zoo, with the speeds that were measured for the documentation."""
    measured = read_curve(DOCS.parent / "benchmarks" / "results" / "curve.json")
    page = zoo_page([info(name) for name in list_models()], [measured])
    (Path(app.outdir) / "zoo.html").write_text(page, encoding="utf-8")


def mended(text: str) -> str:
    """Without typer's lists of cut-off sentences; examples and options in prose set as code."""
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+", "", text)
    text = re.sub(
        r"^Example: (.+)$", r"**Example**:\n\n```console\n$ \1\n```", text, flags=re.MULTILINE
    )
    code_or_option = re.compile(r"```.*?```|`[^`]*`|(--[a-z][a-z-]*)", re.DOTALL)
    return code_or_option.sub(lambda found: f"`{found[1]}`" if found[1] else found[0], text)


def setup(app: Sphinx) -> None:
    """What Sphinx calls."""
    app.connect("source-read", put_commands)
    app.connect("source-read", relink_page)
    app.connect("include-read", relink_included)
    app.connect("build-finished", write_zoo)
