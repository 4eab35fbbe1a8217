"""Open every page of the built site in a headless browser: `make check-site`.

A page must load without an error on its console or a request that fails, its links within the site must lead
to pages and headings that exist, its pictures must have pixels and its formulas must be set. Code must not
contain the names that `conf.py` gives to references in the text. The same holds for a page that
`Reduction.report` writes, whose slider must change what it shows. The browser is a Chromium or Chrome that is
installed already; nothing but these files is read.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HERE = Path(__file__).resolve().parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

# what is wrong on a page, and where it leads
LOOK = """() => {
  const broken = [...document.images].filter(i => !i.complete || i.naturalWidth === 0).map(i => i.src);
  const formulas = [...document.querySelectorAll('.math')];
  const unset = formulas.filter(f => !f.querySelector('mjx-container')).map(f => f.textContent.slice(0, 60));
  const wrong = [...document.querySelectorAll('mjx-merror')].map(f => f.textContent.slice(0, 60));
  return {broken, unset, wrong, formulas: formulas.length, images: document.images.length,
          code: [...document.querySelectorAll('pre')].map(e => e.textContent),
          ids: [...document.querySelectorAll('[id]')].map(e => e.id),
          links: [...document.links].map(a => a.href)};
}"""


#: A reference after conf.py has given it the name of its function, which is right in text only.
REFERENCE = re.compile(r"\[[A-Za-z_]{4,}-\d+\]")


def read_page(browser: Browser, path: Path) -> tuple[dict, list[str]]:
    """Return what is on a page, and what went wrong while it loaded."""
    page = browser.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda request: faults.append(f"not loaded: {request.url}"))
    page.goto(path.as_uri(), wait_until="load")
    page.evaluate("window.MathJax?.startup?.promise")
    # pictures below the first screen are loaded when they are looked at
    page.evaluate("() => { for (const i of document.images) i.loading = 'eager' }")
    page.wait_for_load_state("networkidle")
    seen = page.evaluate(LOOK)
    page.close()
    faults += [f"picture without pixels: {source}" for source in seen["broken"]]
    faults += [f"formula not set: {text}" for text in seen["unset"]]
    faults += [f"formula with an error: {text}" for text in seen["wrong"]]
    faults += [f"reference in code: {name}" for text in seen["code"] for name in REFERENCE.findall(text)]
    return seen, faults


# the order, the line below the slider and the curves, before and after the slider is moved
MOVE = """() => {
  const slider = document.getElementById('order');
  const text = name => document.getElementById(name).textContent;
  const curves = () => [...document.querySelectorAll('#response path')].map(p => p.getAttribute('d')).join();
  const shown = () => [text('number'), text('summary'), curves()];
  const before = shown();
  slider.value = 2;
  slider.dispatchEvent(new Event('input'));
  return [before, shown()];
}"""


def report_faults(browser: Browser) -> list[str]:
    """Write the page of a reduction, open it without a network, and move its slider."""
    import numpy as np

    import hankelred

    n = 20
    springs = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    A = np.block([[np.zeros((n, n)), np.eye(n)], [-springs, -0.1 * springs]])
    B, C = np.eye(2 * n)[:, [n]], np.eye(2 * n)[[n - 1]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        hankelred.reduce((A, B, C, 0), 6).report(path)
        _, faults = read_page(browser, path)
        page = browser.new_page()
        page.context.set_offline(True)
        page.goto(path.as_uri())
        before, after = page.evaluate(MOVE)
        page.close()
    faults += [
        f"the slider leaves {name} as it is"
        for name, first, second in zip(("the order", "the summary", "the curves"), before, after, strict=True)
        if first == second
    ]
    if after[0] != "2":
        faults.append(f"the slider at 2 shows order {after[0]}")
    return faults


def main() -> int:
    """Check the site and say what is wrong."""
    # here, since the tests import every module of this folder and need no browser
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("site", nargs="?", type=Path, default=HERE / "_build" / "html")
    parser.add_argument("--browser", help="path of a Chromium or Chrome; default: the first one found")
    options = parser.parse_args()
    site: Path = options.site.resolve()
    pages = sorted(site.rglob("*.html"))
    if not pages:
        print(f"error: there is no site in {site}; make it with: make docs", file=sys.stderr)
        return 2
    program = options.browser or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        print(f"error: no browser found ({', '.join(BROWSERS)}); name one with --browser", file=sys.stderr)
        return 2
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        found = {page: read_page(browser, page) for page in pages}
        of_report = report_faults(browser)
        browser.close()
    for page, (seen, faults) in found.items():
        for link in seen["links"]:
            parts = urlsplit(link)
            target = Path(unquote(parts.path))
            if parts.scheme != "file":
                continue
            anchor = unquote(parts.fragment)
            if not target.exists():
                faults.append(f"link to a file that is not there: {link}")
            elif page.is_relative_to(site / "_modules"):
                continue  # viewcode knows one name of a module: some links lead to the page, not to the place
            elif anchor and target in found and anchor not in found[target][0]["ids"]:
                faults.append(f"link to a heading that is not there: {link}")
        for fault in faults:
            print(f"{page.relative_to(site)}: {fault}")
    for fault in of_report:
        print(f"report.html of a reduction: {fault}")
    faulty = sum(bool(faults) for _, faults in found.values()) + bool(of_report)
    formulas, images = (sum(seen[kind] for seen, _ in found.values()) for kind in ("formulas", "images"))
    print(f"{len(pages)} pages, {formulas} formulas, {images} pictures; {faulty} pages with faults")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
