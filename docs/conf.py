"""Settings of Sphinx, which makes the pages of `docs/` into a site (`make docs`)."""

import os
import re
from typing import Any

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

project = "Convener"
copyright = "the authors of Convener"  # noqa: A001  (Sphinx looks for this name)
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
html_theme = "furo"
html_title = "Convener"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"source_edit_link": ""}
myst_heading_anchors = 4  # as forges make them, so that one link serves both
myst_number_code_blocks: list[str] = []
nitpicky = True

# Documents that have to lie elsewhere, with the page of the site that includes each.
_OUTSIDE = {
    "CONTRIBUTING.md": "contributing",
    "CHANGELOG.md": "changelog",
    "SECURITY.md": "security",
    "benchmarks/README.md": "benchmarks",
    "docker/README.md": "containers",
}


def _lead_to_included(_: Sphinx, page: str, source: list[str]) -> None:
    """Let links that leave `docs/` lead to the page that includes their target."""

    def replace(match: re.Match[str]) -> str:
        target = os.path.relpath(os.path.join("docs", os.path.dirname(page), match[1]))
        inside = _OUTSIDE.get(target)
        if inside is None:
            return match[0]
        return f"]({os.path.relpath(f'project/{inside}.md', os.path.dirname(page) or '.')}{match[2] or ''})"

    source[0] = re.sub(r"\]\(((?:\.\./)+[\w./-]+\.md)(#[\w-]+)?\)", replace, source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", _lead_to_included)
    app.add_lexer("mermaid", TextLexer)  # forges draw it; here it is read as text, which needs no script from elsewhere
    return {"parallel_read_safe": True}
