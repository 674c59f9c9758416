"""The page in a real browser: silent, alone, readable under the pointer, on a wide and a narrow window, on paper."""

import json

import pytest

from consilience import analysis
from consilience.report import report
from tests.report.browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
EVIL = '</script><script>document.title="mine"</script><img src=x onerror=alert(1)>'


@pytest.fixture(scope="module")
def page(fakes, world, tmp_path_factory):
    train, test = world.draw(300, seed=50), world.draw(120, seed=51)
    path = tmp_path_factory.mktemp("browsed") / "report.html"
    compared = analysis.compare(fakes.Fake(), train, test, ["spectrum"], baselines=[analysis.MeanBaseline()], n=50)
    report(fakes.Fake(), test, path, train=train, title=EVIL, results=[compared])
    return path


@pytest.fixture(scope="module", params=[1280, 390], ids=["wide", "narrow"])
def browser(page, request, tmp_path_factory):
    with Browser(page, tmp_path_factory.mktemp("profile"), request.param) as found:
        yield found


def test_the_page_says_nothing_to_the_console_and_asks_the_network_for_nothing(browser, page):
    assert browser.run("document.readyState") == "complete"
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.run("document.title") == EVIL
    assert page.stat().st_size < 8_000_000


def test_every_figure_is_drawn_and_the_page_is_not_wider_than_its_window(browser):
    assert browser.run("document.querySelectorAll('figure img').length") >= 10
    assert browser.run("[...document.images].every(one => one.complete && one.naturalWidth > 100)")
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert "In words" in browser.run("document.body.innerText")


def test_values_are_told_under_the_pointer_and_nowhere_else(browser):
    number = browser.run(
        "[...document.querySelectorAll('figure')].findIndex(one => one.querySelector('script').textContent.length > 3)"
    )
    figure = f"document.querySelectorAll('figure')[{number}]"
    browser.run(f"{figure}.scrollIntoView({{behavior: 'instant'}})")
    browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")  # it has scrolled
    told = json.loads(browser.run(f"{figure}.querySelector('script').textContent"))
    left, top, width, height = browser.run(
        f"(box => [box.left, box.top, box.width, box.height])({figure}.querySelector('img').getBoundingClientRect())"
    )
    shown = browser.run("window.innerWidth") - 20
    i = next(i for i, (across, _) in enumerate(told[0]["place"]) if left + across * width < shown)
    across, down = told[0]["place"][i]
    browser.move(left + across * width, top + down * height)
    assert browser.run("document.querySelector('.tip').hidden") is False
    text = browser.run("document.querySelector('.tip').textContent")
    assert text.split("\n")[-2:] == [f"{a}: {b}" for a, b in zip(told[0]["axes"], told[0]["told"][i], strict=True)]
    browser.move(left + width / 2, top - 60)
    assert browser.run("document.querySelector('.tip').hidden") is True


def test_a_figure_grows_and_shrinks_by_its_buttons(browser):
    figure = "document.querySelector('figure')"
    size = f"{figure}.querySelector('img').getBoundingClientRect().width"
    before = browser.run(size)
    assert browser.run(f"{figure}.querySelector('button').disabled") is True
    for _ in range(5):
        browser.run(f"{figure}.querySelectorAll('button')[1].click()")
    assert browser.run(size) == pytest.approx(7 * before, rel=0.01)
    assert browser.run(f"{figure}.querySelectorAll('button')[1].disabled") is True
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    for _ in range(5):
        browser.run(f"{figure}.querySelector('button').click()")
    assert browser.run(size) == pytest.approx(before, abs=1)


def test_on_paper_there_are_no_buttons_and_several_pages(browser):
    browser.call("Emulation.setEmulatedMedia", media="print")
    hidden = "[...document.querySelectorAll('.zoom, nav')].every(one => getComputedStyle(one).display === 'none')"
    assert browser.run(hidden)
    printed = browser.printed()
    browser.call("Emulation.setEmulatedMedia", media="")
    assert printed.startswith(b"%PDF") and printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") >= 3
    assert not browser.run(hidden)


def test_a_script_that_is_not_the_page_s_own_does_not_run(page, tmp_path):
    changed = tmp_path / "changed.html"
    changed.write_text(page.read_text().replace("</main>", "<script>document.title = 'mine'</script></main>"))
    with Browser(changed, tmp_path / "profile", 800) as browser:
        assert browser.run("document.title") == EVIL
        assert any("Content Security Policy" in json.dumps(one) for one in browser.complaints())
