"""The report in a real browser, from file:// with the network off."""

import math
import os
from pathlib import Path

import pytest

from pipelines.report.curves import read_log
from pipelines.report.gradient_plane import plane_of
from unlearn_core.frontier import non_dominated

pytestmark = pytest.mark.browser

SCREENSHOTS = os.environ.get("REPORT_SCREENSHOTS")
"""Folder for pictures of what the tests saw; such as docs/images before a release."""


@pytest.fixture
def open_page(chromium):
    """Opens a page; at the end of the test it must have asked for nothing and complained of nothing."""
    contexts, said = [], []

    def opened(path, **settings):
        context = chromium.new_context(**{"viewport": {"width": 1400, "height": 1000}, "offline": True} | settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: said.append(f"request: {request.url[:200]}") if "#" not in request.url
                and request.url != f"file://{path}" else None)  # fmt: skip
        page.goto(f"file://{path}")
        page.wait_for_selector("#run-card h3")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []


def picture(page, name, selector=None):
    if SCREENSHOTS:
        page.wait_for_timeout(400)
        where = page.locator(selector) if selector else page
        where.screenshot(path=Path(SCREENSHOTS) / f"report-{name}.png")


def until(page, expression):
    """Waits for it; Playwright's own wait would need eval, which the page forbids."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")


def place_of(page, n):
    """Where point n is on the screen."""
    return page.evaluate(
        """n => { const plot = byId('frontier-plot'), box = plot.getBoundingClientRect(), full = plot._fullLayout;
        return [box.left + full.xaxis._offset + full.xaxis.d2p(drawn.xs[n]),
                box.top + full.yaxis._offset + full.yaxis.d2p(drawn.ys[n])]; }""",
        n,
    )


def test_the_demo_opens_from_disk_with_every_panel(open_page, demo_page):
    path, content = demo_page
    page = open_page(path)
    assert page.title() == "Unlearning report: synthetic:small, forget10"
    for section in ("frontier", "points", "run", "curves", "gradient", "answers", "robustness", "what-ran"):
        assert page.locator(f"#{section}").is_visible()
    assert page.locator("#summary li").all_inner_texts() == content.sentences
    assert page.locator("#frontier-plot .scatterlayer .points path").count() >= 16
    assert page.locator("#curve-panels figure").count() == 4  # no teacher
    picture(page, "frontier", "#frontier")
    picture(page, "training", "#curves")
    picture(page, "robustness", "#robustness")


def test_hover_tells_configuration_step_and_every_metric_and_a_click_opens_the_run(open_page, demo_page):
    page = open_page(demo_page[0])
    n = page.evaluate("data.points.findIndex(point => point.model === 'grad_diff-step-00030')")
    page.locator("#frontier-plot").scroll_into_view_if_needed()
    page.mouse.move(*place_of(page, n), steps=4)
    page.wait_for_selector("#point-card >> text=extraction_strength")
    card = page.locator("#point-card").inner_text()
    names = page.evaluate("n => data.columns.filter((name, k) => data.metrics[n][k] !== null)", n)
    assert len(names) > 30
    assert all(name in card for name in names)
    assert "grad_diff" in card and "optimizer.learning_rate" in card and "\n30\n" in card
    assert page.locator("#frontier-plot .hoverlayer .hovertext").count() == 1
    page.mouse.click(*place_of(page, n))
    until(page, "byId('run-card').querySelector('h3').textContent === 'grad_diff'")
    assert "chosen step" in page.locator("#run-card").inner_text()
    assert page.locator("#run-card tr.selected").inner_text().split("\t")[0] == "30"
    assert page.locator("#table tr.selected").count() == 1


def test_toggles_and_the_front_of_what_is_left(open_page, demo_page):
    page = open_page(demo_page[0])
    rows = page.locator("#table tbody tr").count()
    page.locator("#methods button", has_text="NGDiff").click()
    assert page.locator("#methods button", has_text="NGDiff").get_attribute("aria-pressed") == "false"
    left = page.evaluate("drawn.order.map(n => [data.runs[data.points[n].run].method, drawn.xs[n], drawn.ys[n]])")
    assert {method for method, _, _ in left} == {"grad_diff"}
    expected = int(non_dominated([(x, y) for _, x, y in left], (True, True)).sum())
    assert page.evaluate("drawn.front.length") == expected > 1
    assert page.locator("#table tbody tr").count() == rows - 8
    page.locator("#methods button", has_text="NGDiff").click()
    names = "byId('frontier-plot').data.map(trace => trace.name)"
    for button, trace in (("show-stars", "retrained"), ("show-front", "front")):
        assert trace in page.evaluate(names)
        page.locator(f"#{button}").click()
        assert trace not in page.evaluate(names)
    assert page.evaluate("byId('frontier-plot').data.some(trace => trace.mode === 'lines')")
    page.locator("#show-lines").click()
    assert not page.evaluate("byId('frontier-plot').data.some(trace => trace.mode === 'lines')")


def test_axes_can_be_chosen_and_made_logarithmic(open_page, demo_page):
    page = open_page(demo_page[0])
    assert page.locator("#x-log").is_disabled()
    page.locator("#x-axis").select_option("raw:forget_quality")
    page.locator("#x-log").click()
    assert page.evaluate("byId('frontier-plot')._fullLayout.xaxis.type") == "log"
    assert "no front" in page.locator("#frontier-note").inner_text()
    page.locator("#x-axis").select_option("axis:exact_memorization")
    assert page.evaluate("byId('frontier-plot')._fullLayout.xaxis.type") == "linear"
    area = page.evaluate("data.areas['axis:exact_memorization|axis:model_utility']['']")
    assert f"{float(f'{area:.4g}')}" in page.locator("#frontier-note").inner_text()


def test_the_table_sorts_both_ways_and_filters(open_page, demo_page):
    page = open_page(demo_page[0])
    header = page.locator(
        "#table th button[data-column='raw:model_utility'], #table th button[data-column='axis:model_utility']"
    )
    column = header.first.get_attribute("data-column")
    place = page.evaluate(
        "column => [...document.querySelectorAll('#table th button')].findIndex(b => b.dataset.column === column)",
        column,
    )
    read = """k => [...document.querySelectorAll('#table tbody tr')].map(row => row.children[k].textContent)
        .filter(Boolean).map(Number)"""
    page.locator(f"#table th button[data-column='{column}']").click()
    falling = page.evaluate(read, place)
    assert falling == sorted(falling, reverse=True) and len(set(falling)) > 5
    page.locator(f"#table th button[data-column='{column}']").click()
    assert page.evaluate(read, place) == falling[::-1]
    assert page.locator(f"#table th:has(button[data-column='{column}'])").get_attribute("aria-sort") == "ascending"
    page.locator("#table-filter").fill("grad_diff")
    assert page.locator("#table tbody tr").count() == 8
    page.locator("#table-filter").fill("")
    page.locator("#table-front").click()
    assert page.locator("#table tbody tr").count() == page.evaluate("drawn.front.length")
    before = page.locator("#table th").count()
    page.locator("#table-all").click()
    assert page.locator("#table th").count() > before


def luminance(colour):
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(page, selector):
    ink, paper = page.evaluate(
        """selector => { const node = document.querySelector(selector); let under = node;
        const clear = () => getComputedStyle(under).backgroundColor === 'rgba(0, 0, 0, 0)';
        while (clear() && under.parentElement) under = under.parentElement;
        return [getComputedStyle(node).color, getComputedStyle(under).backgroundColor]; }""",
        selector,
    )
    light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_can_be_read(open_page, demo_page, scheme):
    page = open_page(demo_page[0], color_scheme=scheme)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    # WCAG 2.2, AA: 4.5 for text.
    for selector in ("#summary li", ".soft", "nav a", "#table td", "dt", ".reply p", "#point-card p", "#theme"):
        assert contrast(page, selector) >= 4.5, selector
    paper = page.evaluate("byId('frontier-plot')._fullLayout.paper_bgcolor")
    if scheme == "dark":
        picture(page, "dark")
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") != scheme
    assert page.evaluate("byId('frontier-plot')._fullLayout.paper_bgcolor") != paper


def test_the_frontier_is_walked_by_keys(open_page, demo_page):
    page = open_page(demo_page[0])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.locator("#frontier-box").focus()
    page.keyboard.press("ArrowRight")
    first = page.evaluate("drawn.order[0]")
    assert page.evaluate("n => data.runs[data.points[n].run].label", first) in page.locator("#point-card").inner_text()
    page.keyboard.press("ArrowRight")
    second = page.evaluate("drawn.order[1]")
    page.keyboard.press("Enter")
    assert page.evaluate("[state.run, state.point]") == [page.evaluate("n => data.points[n].run", second), second]
    assert page.evaluate("document.activeElement.id") == "run"


def test_the_gradient_picture_has_the_logs_arrows(open_page, demo_page, recorded):
    page = open_page(demo_page[0])
    page.locator("#run-choice").select_option(label="ngdiff (NGDiff)")
    page.locator("#gradient-step").fill("12")
    picture(page, "gradients", "#gradient")
    page.locator("#gradient-unit").click()  # true lengths
    log = read_log(recorded / "demo" / "runs" / "ngdiff")
    tips = page.evaluate(
        "byId('gradient-plot').layout.annotations.filter(one => one.showarrow).map(one => [one.x, one.y])"
    )
    step = log[12]
    along = step["norm_forget"] * step["cosine"]
    across = step["norm_forget"] * math.sqrt(1 - step["cosine"] ** 2)
    assert tips[0] == pytest.approx([step["norm_retain"], 0], rel=1e-4)
    assert tips[1] == pytest.approx([along, across], rel=1e-4)
    assert f"{step['step']}" in page.locator("#gradient-card").inner_text()
    found = plane_of(log, page.evaluate("data.runs[state.run].config"))
    assert tips[2] == pytest.approx(list(found.directions[12]), rel=1e-4)
    page.locator("#gradient-play").click()
    until(page, "plane.at === 13")
    page.locator("#gradient-play").click()
    page.locator("#run-choice").select_option(label="grad_diff (GradDiff)")
    assert "diagnostics: true" in page.locator("#gradient-card").inner_text()


def test_answers_stand_side_by_side(open_page, demo_page):
    page = open_page(demo_page[0])
    groups = page.locator("#answers-group option").all_inner_texts()
    assert groups == ["forget", "retain", "general (real authors)", "general (world facts)"]
    page.locator("#answers-run").select_option(label="ngdiff, step 25")
    heads = page.locator("#answers-list .question").first.locator("h4").all_inner_texts()
    assert heads == ["before unlearning", "ngdiff, step 25", "retrained"]
    assert page.locator("#answers-list .question").count() == 6
    picture(page, "answers", "#answers")
    page.locator("#answers-group").select_option("retain")
    assert page.locator("#answers-list .question").count() == 6


def test_the_search_has_bands_seeds_and_probes(open_page, search_page):
    page = open_page(search_page[0])
    names = page.evaluate("byId('frontier-plot').data.map(trace => trace.name || '')")
    assert any("2 search seeds" in name for name in names)
    assert "seeds: mean, deviation" in names
    page.locator("#show-bands").click()
    page.locator("#show-seeds").click()
    names = page.evaluate("byId('frontier-plot').data.map(trace => trace.name || '')")
    assert not any("search seeds" in name or "deviation" in name for name in names)
    assert page.evaluate("byId('curve-rate').data.some(trace => trace.name === 'probe accepted')")
    page.locator("#show-bands").click()
    page.locator("#show-seeds").click()
    picture(page, "search", "#frontier")


def test_1800_points_and_a_hostile_text(open_page, large_page):
    page = open_page(large_page[0])
    assert page.locator("#frontier-plot .scatterlayer .points path").count() >= 1802
    n = page.evaluate("drawn.front[2]")
    page.locator("#frontier-plot").scroll_into_view_if_needed()
    page.mouse.move(*place_of(page, n), steps=3)
    page.wait_for_selector("#point-card >> text=extraction_strength")
    page.locator("#methods button", has_text="RMU").click()
    assert page.evaluate("drawn.order.length") == 1500
    assert page.locator("#table tbody tr").count() == 200
    page.locator("#table-more").click()
    assert page.locator("#table tbody tr").count() == 1200
    assert page.evaluate("window.broken === undefined")
    assert "</script><script>window.broken" in page.locator("#what-ran").inner_text()


def test_a_phone_scrolls_only_down(open_page, demo_page):
    page = open_page(demo_page[0], viewport={"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
