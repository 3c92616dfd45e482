"""Open every page of the built site in Chromium, as wide as a desktop and as a phone.

``make docs-check`` runs it. A page fails that asks for anything outside the site, logs an error,
shows a broken picture, or is wider than its window.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

SITE = Path(__file__).parent / "_build/html"
WIDTHS = {"desktop": 1280, "phone": 390}
# the search asks for its index with the query only
_BROKEN = "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
_TOO_WIDE = "document.documentElement.scrollWidth - window.innerWidth"


def check(browser: Browser, page: Path, screenshots: Path | None) -> Iterator[str]:
    """List what is wrong with a page."""
    for name, width in WIDTHS.items():
        tab = browser.new_page(viewport={"width": width, "height": 900})
        found: list[str] = []
        tab.on("console", lambda m, f=found: f.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda error, f=found: f.append(str(error)))
        tab.on(
            "request",
            lambda r, f=found: None if r.url.startswith(("file:", "data:")) else f.append(r.url),
        )
        tab.goto(page.as_uri(), timeout=120_000)  # ms; other programs may share the cores
        found += [f"broken picture {source}" for source in tab.evaluate(_BROKEN)]
        if (excess := tab.evaluate(_TOO_WIDE)) > 0:
            found.append(f"{excess} px wider than the window")
        if screenshots is not None:
            stem = "-".join(page.relative_to(SITE).with_suffix("").parts)
            tab.screenshot(path=screenshots / f"{stem}-{name}.png")
        tab.close()
        yield from (f"{page.relative_to(SITE)}, {name}: {problem}" for problem in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--screenshots", type=Path, help="Folder to write them to.")
    args = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        sys.exit("error: no Chromium on this machine (Debian: apt-get install chromium)")
    pages = sorted(SITE.rglob("*.html"))
    if not pages:
        sys.exit(f"error: there are no pages in {SITE}: make docs")
    if args.screenshots is not None:
        args.screenshots.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        problems = [line for page in pages for line in check(browser, page, args.screenshots)]
        browser.close()
    print(*problems, f"{len(pages)} pages, {len(problems)} problems", sep="\n")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
