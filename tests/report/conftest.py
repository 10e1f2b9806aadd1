"""Recorded results in a folder of their own, the pages made of them, and a browser to open these in."""

import os
import shutil
from pathlib import Path

import pytest

from pipelines.report.write import report
from tests.report.large_evaluation import many_points

RECORDED = Path(__file__).parent / "recorded"


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """The recordings, as if this machine had made them."""
    folder = tmp_path_factory.mktemp("recorded") / "results"
    shutil.copytree(RECORDED, folder)
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".csv"):
            path.write_text(path.read_text().replace("FOLDER", str(folder)))
    # Run folders are found by their exported models, which are too large to be kept.
    for run in (folder / "demo" / "runs").iterdir():
        (run / "models").mkdir()
    return folder


@pytest.fixture(scope="session")
def demo_page(recorded, tmp_path_factory):
    output = tmp_path_factory.mktemp("report") / "demo"
    return report([recorded / "demo" / "evaluation", recorded / "demo" / "robustness"], output)


@pytest.fixture(scope="session")
def search_page(recorded, tmp_path_factory):
    output = tmp_path_factory.mktemp("report") / "search"
    return report([recorded / "search" / "search-0", recorded / "search" / "search-1"], output)


@pytest.fixture(scope="session")
def large_page(tmp_path_factory):
    """1,802 points, and a note that tries to run a script."""
    folder = tmp_path_factory.mktemp("large")
    return report([many_points(folder / "evaluation")], folder / "report")


@pytest.fixture(scope="module")
def chromium():
    """Chromium: the system's, else the one that Playwright downloaded.

    Of a module alone: while Playwright is entered its event loop counts as running, and later tests could start none.
    """

    def missing(reason):
        if os.environ.get("CI") or os.environ.get("UNLEARN_REQUIRE_DATA"):
            pytest.fail(reason)
        pytest.skip(reason)

    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        missing("the tests of pages need Playwright: pip install playwright")
    own = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    with sync_playwright() as playwright:
        try:
            # Root in a container has no user namespaces for the sandbox; the pages are our own files.
            browser = playwright.chromium.launch(executable_path=own, chromium_sandbox=False)
        except Error as error:
            missing(f"no Chromium to open pages in ({error}); apt-get install chromium, or playwright install chromium")
        yield browser
        browser.close()
