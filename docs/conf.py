"""Configuration of the documentation site; `make docs` builds it, without any network access."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hankelred

project = "hankelred"
author = "The hankelred developers"
copyright = author
version = release = hankelred.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",  # formulas without a network
]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"hankelred {version}"
html_show_sphinx = False

# the docstrings are numpydoc and name every type in words
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"


def separate_references(app, what, name, obj, options, lines):
    """Give numbered references a name of their own: several docstrings stand on one page."""
    label = name.rsplit(".", 1)[-1]
    lines[:] = [re.sub(r"\[(\d+)\](?=_|\s)", rf"[{label}-\1]", line) for line in lines]
    # two attributes described at once: the field must not have a blank in its name
    lines[:] = [re.sub(r"^(:(?:ivar|vartype) \w+), (\w+:)", r"\1,\2", line) for line in lines]


def setup(app):
    """Connect what is defined here."""
    app.connect("autodoc-process-docstring", separate_references, priority=900)
