"""Configuration of the documentation site; `make docs` builds it, without any network access."""

from __future__ import annotations

import os
import re
import sys
from importlib.util import find_spec
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
    "sphinx.ext.autosummary",  # a page for each function
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",  # links to the source
    "sphinx-mathjax-offline",  # formulas without a network
]
if find_spec("sphinx_copybutton") is not None:
    extensions.append("sphinx_copybutton")
# copied without prompts, and without what was printed
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# the site is built without a network; with HANKELRED_INTERSPHINX=1 types of other packages are links
intersphinx_mapping = {
    "control": ("https://python-control.readthedocs.io/en/stable/", None),
    "numpy": ("https://numpy.org/doc/stable/", None),
    "python": ("https://docs.python.org/3/", None),
    "scipy": ("https://docs.scipy.org/doc/scipy/", None),
}
if not os.environ.get("HANKELRED_INTERSPHINX"):
    intersphinx_mapping = {}
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

exclude_patterns = ["_build"]
autosummary_generate = False
html_theme = "furo"
html_title = f"hankelred {version}"
# links to other versions, where these are served too (tools/site_versions.py)
templates_path = ["_templates"]
html_static_path = ["_static"]
html_js_files = [("versions.js", {"defer": "defer"})]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/search.html",
        "versions.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
html_show_sphinx = False

# the docstrings are numpydoc and name every type in words
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"


def separate_references(app, what, name, obj, options, lines):
    """Give numbered references a name of their own: several docstrings stand on one page.

    Only text is changed. In code, `errors[0]` is an index.
    """
    label = name.rsplit(".", 1)[-1]
    in_code = False
    for k, line in enumerate(lines):
        # code is a doctest until the next empty line, or an indented block after "::"
        in_code = line.lstrip().startswith(">>>") or (in_code and bool(line.strip()))
        if not in_code:
            lines[k] = re.sub(r"(?<![\w)\]])\[(\d+)\](?=_|\s)", rf"[{label}-\1]", line)
    # two attributes described at once: the field must not have a blank in its name
    lines[:] = [re.sub(r"^(:(?:ivar|vartype) \w+), (\w+:)", r"\1,\2", line) for line in lines]


#: Pages whose directives get a page each, and the folder of these pages, which is made again by every build.
REFERENCES = {"api": "hankelred", "api_llm": "hankelred_llm"}
PAGES = Path(__file__).resolve().parent / "reference"
_BLOCK = re.compile(r"^```\{eval-rst\}\n((?:\.\. auto\w+::.*\n(?:   .*\n)*)+)```\n", re.MULTILINE)
_DIRECTIVE = re.compile(r"^\.\. auto\w+:: ([\w.]+).*\n(?:   .*\n)*", re.MULTILINE)


def write_reference_pages(app):
    """Write a page for every function and class of the reference, from the directives of its overview."""
    PAGES.mkdir(exist_ok=True)
    wanted = {}
    for page, package in REFERENCES.items():
        text = (Path(app.srcdir) / f"{page}.md").read_text(encoding="utf-8")
        for block in _BLOCK.findall(text):
            for directive in _DIRECTIVE.finditer(block):
                name = directive[1].rsplit(".", 1)[-1]
                content = f"{name}\n{'=' * len(name)}\n\n.. currentmodule:: {package}\n\n{directive[0]}"
                wanted[PAGES / f"{_full(package, directive[1])}.rst"] = content
    for path in set(PAGES.glob("*.rst")) - set(wanted):
        path.unlink()
    for path, content in wanted.items():
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            path.write_text(content, encoding="utf-8")


def link_reference_pages(app, docname, source):
    """Replace the directives of an overview by a table of links."""
    if docname not in REFERENCES:
        return
    package = REFERENCES[docname]

    def table(block):
        names = [_full(package, directive[1]) for directive in _DIRECTIVE.finditer(block[1])]
        rows = "\n".join("   " + name.removeprefix(f"{package}.") for name in names)
        pages = "\n".join(f"reference/{name}" for name in names)
        return (
            f"```{{eval-rst}}\n.. autosummary::\n\n{rows}\n```\n\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n"
        )

    source[0] = _BLOCK.sub(table, source[0])


def _full(package, name):
    return name if name.startswith("hankelred") else f"{package}.{name}"


def setup(app):
    """Connect what is defined here."""
    app.connect("autodoc-process-docstring", separate_references, priority=900)
    app.connect("builder-inited", write_reference_pages)
    app.connect("source-read", link_reference_pages)
