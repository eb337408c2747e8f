"""The live page in a real browser: a chat, its colours, steering by slider, dark, on a phone and by keyboard alone."""

from __future__ import annotations

from collections.abc import Iterator

import affectlens
import pytest
from browser import browser, visit
from serving import serving

pytest.importorskip("uvicorn")
READY = "html[data-ready]"


@pytest.fixture(scope="module")
def address(computed_study) -> Iterator[str]:
    from affectlens.serve.service import Service

    service = Service(affectlens.open_study(computed_study))
    with serving(service) as address:
        yield address
    service.close()


@pytest.fixture(scope="module")
def running():
    with browser() as running:
        yield running


def say(page, text: str, tokens: int = 12) -> None:
    """Write a message, send it by keyboard, and wait until everything is answered."""
    done = int(page.evaluate("document.documentElement.dataset.answered || 0"))
    page.fill("#tokens", str(tokens))
    page.fill("#message", text)
    page.press("#message", "Enter")
    page.wait_for_selector(f'html[data-answered="{done + 1}"]', state="attached", timeout=60_000)


def colours(page) -> list[str]:
    return page.evaluate("[...document.querySelectorAll('.text span')].map((e) => getComputedStyle(e).backgroundColor)")


def test_a_chat_plain_and_steered(address, running):
    with visit(running, address, ready=READY) as seen:
        page = seen.page
        assert page.locator("#concept option").all_inner_texts()[:4] == ["afraid", "calm", "proud", "sad"]
        say(page, "The letter <b>came</b> & nobody was home.")
        assert page.locator(".pair .said").count() == 1
        assert page.locator(".user .text").inner_text() == "The letter <b>came</b> & nobody was home."
        assert page.locator(".user .text span").count() > 5, "the question is read, too"
        first = colours(page)
        assert len(set(first)) > 3
        page.select_option("#concept", "sad")
        assert colours(page) != first

        token = page.locator(".pair .text span").first
        token.hover()
        assert "sad" in page.inner_text("#detail") and "highest" in page.inner_text("#detail")
        page.fill("#filter", "calm")
        assert page.locator(".slider:visible").count() == 1
        page.focus('.slider[data-name="calm"] input')
        for _ in range(30):
            page.keyboard.press("ArrowRight")
        assert page.inner_text('.slider[data-name="calm"] output') == "+0.30"
        say(page, "And then?", tokens=30)
        plain, steered = page.locator(".pair.two .text").all_inner_texts()
        assert plain and steered
        assert page.locator(".pair.two .who").all_inner_texts()[1].startswith("calm +0.30")
        assert page.locator(".pair.two .mean").all_inner_texts()[0].startswith("mean")
        page.click("#reset")
        assert page.inner_text('.slider[data-name="calm"] output') == "0"
        assert page.inner_text("#fault") == ""
        assert "alarm" not in page.inner_text("body").lower(), "no monitor card is loaded"
        assert seen.errors == []
        assert {url.split("?")[0].removeprefix(address) for url in seen.requests} - {"data:,"} == {
            "/", "/v1/models", "/v1/chat/completions",
        }  # fmt: skip


def test_by_keyboard_alone(address, running):
    with visit(running, address, ready=READY) as seen:
        say(seen.page, "The rain")
        seen.page.focus(".pair .text")
        details = []
        for _ in range(3):
            seen.page.keyboard.press("ArrowRight")
            details.append(seen.page.inner_text("#detail"))
        assert len(set(details)) == 3
        assert seen.page.locator(".now").count() == 1


def test_an_answer_can_be_stopped_and_a_fault_is_told(address, running):
    with visit(running, address, ready=READY) as seen:
        page = seen.page
        page.fill("#tokens", "450")
        page.fill("#message", "word")
        page.press("#message", "Enter")
        page.wait_for_selector(".pair .text span")
        page.click("#send")
        page.wait_for_selector('html[data-answered="1"]', state="attached", timeout=10_000)
        assert page.inner_text("#fault") == ""
        assert page.locator(".pair .text span").count() < 450
        seen.errors.clear()
        say(page, "word " * 800)
        assert "tokens of prompt" in page.inner_text("#fault")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_follows_the_scheme(address, running, dark, width, tmp_path):
    with visit(running, address, width=width, dark=dark, phone=width < 500, ready=READY) as seen:
        page = seen.page
        page.locator(".slider input").first.focus()
        for _ in range(10):
            page.keyboard.press("ArrowLeft")
        say(page, "A long day, and anextremelylongwordthatdoesnotbreakbyitselfanywhereinthissentenceatall.", tokens=40)
        assert seen.overflow() <= 0
        ink, ground = (
            page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor")
        )
        bright = [sum(map(int, colour[4:-1].split(","))) for colour in (ink, ground)]
        assert (bright[0] > bright[1]) == dark
        page.click("#scheme")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != ground
        tops = [box.bounding_box()["y"] for box in page.locator(".pair.two .said").all()]
        assert (tops[0] == tops[1]) == (width > 500), "side by side, or on a phone one below the other"
        assert seen.errors == []
