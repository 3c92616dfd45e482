"""Settings of the documentation site: ``make docs`` builds it into ``docs/_build``."""

from __future__ import annotations

import sys
from pathlib import Path

import dens

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))

project = "dens"
author = "The dens developers"
copyright = author
version = release = dens.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_gallery.gen_gallery",
    "mathml",
    "generated",
]
# README.md and the pages' own README are for readers of the repository; index.md takes their place.
exclude_patterns = ["_build", "README.md", "results/gpu", "results/relaxation"]
root_doc = "index"

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
# single backticks in docstrings and help are code, and dashes of options stay two
default_role = "code"
smartquotes = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# The build runs the tutorials: one that fails ends it. -D plot_gallery=0 leaves that out.
sphinx_gallery_conf = {
    "examples_dirs": "../examples/tutorials",
    "gallery_dirs": "tutorials",
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"shell\.py",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "capture_repr": (),
    "default_thumb_file": str(DOCS / "report.png"),
    "download_all_examples": False,
    "min_reported_time": 0,
    "show_signature": False,
    "write_computation_times": False,
    "remove_config_comments": True,
}

# Nothing is loaded from elsewhere when a page is read: formulas are MathML, written by the build.
html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"dens {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}

# Anchors of GitHub's pages are made by scripts, so that a reader without browser does not see them.
linkcheck_anchors_ignore_for_url = [r"https://github\.com/.*"]


def skip_tuple_fields(app, what: str, name: str, value: object, skip: bool, options) -> bool | None:
    """Leave out the fields of named tuples, of which autodoc only says their number."""
    return True if type(value).__name__ == "_tuplegetter" else None


def list_new_pages(app, docname: str, source: list[str]) -> None:
    """List pages of ``docs/`` that no toctree names, in place of NEW-PAGES, last of the guides."""
    if docname == root_doc:
        pages = sorted(p.stem for p in DOCS.glob("*.md") if p.name not in exclude_patterns)
        named = source[0].split()
        new = [page for page in pages if page != root_doc and page not in named]
        source[0] = source[0].replace("NEW-PAGES", "\n".join(new))


def setup(app) -> None:
    """Connect what is too small for an extension."""
    app.connect("autodoc-skip-member", skip_tuple_fields)
    app.connect("source-read", list_new_pages)
