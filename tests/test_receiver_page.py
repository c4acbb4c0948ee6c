"""The receiver's page in a real headless Chromium."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest
import requests

from se3_uploader.receiver import Receiver, Store
from tests.receiver_samples import event, jpeg, status, text

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not CHROMIUM or not DRIVER:
    pytest.skip("chromium and chromedriver are not installed", allow_module_level=True)
webdriver = pytest.importorskip("selenium.webdriver")

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --lang=en"
    " --disable-background-networking --disable-component-update --disable-sync"
)
EVIL = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>\"'>&lt;b>"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: Any) -> Iterator[Any]:
    """One browser for all tests, with a new, empty profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Any]:
    """The browser at desktop size; whatever it complains about fails the test."""
    resize(chromium, 1280, 900)
    chromium.get_log("browser")
    yield chromium
    assert chromium.get_log("browser") == []


@pytest.fixture
def receiver(chromium: Any, tmp_path: Path) -> Iterator[Receiver]:
    """A receiver that runs for one test, until the browser has left its page."""
    with Receiver(dir=tmp_path) as running:
        yield running
        chromium.get("about:blank")


def resize(browser: Any, width: int, height: int) -> None:
    """A screen of this size, narrower than a window can be."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )


def send(receiver: Receiver, payload: Any, path: str = "/HistoryEvent", key: str = "") -> None:
    """POST one report."""
    headers = {"Idempotency-Key": key} if key else {}
    requests.post(receiver.url + path, json=payload, headers=headers, timeout=10)


def script(browser: Any, code: str) -> Any:
    """The value of a JavaScript expression."""
    return browser.execute_script(f"return {code}")


def until(holds: Callable[[], Any], seconds: float = 10) -> Any:
    """Wait for a condition and return what it gave; fail when it does not come."""
    deadline = time.monotonic() + seconds
    while not (result := holds()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return result


def names(browser: Any) -> List[str]:
    """Who is on the page, from the first card to the last."""
    return list(script(browser, "[...document.querySelectorAll('.name')].map(n => n.textContent)"))


def words(browser: Any, selector: str) -> str:
    """The text a person sees there."""
    return str(script(browser, f"document.querySelector({selector!r})?.innerText ?? ''"))


def click(browser: Any, selector: str) -> None:
    """Click like a person, with the element in view."""
    browser.find_element("css selector", selector).click()


def test_an_event_appears_without_a_reload(browser: Any, receiver: Receiver) -> None:
    """The page waits, tells how to send, and shows what comes, the newest first."""
    browser.get(receiver.url)
    until(lambda: "Waiting for the first event" in words(browser, "#empty"))
    assert f"{receiver.url}/HistoryEvent" in words(browser, "#empty")
    browser.execute_script("window.same = true")
    for name in ("王芳", "José García"):
        send(receiver, event(identity_name=name))
        until(lambda name=name: name in names(browser))
    assert names(browser) == ["José García", "王芳"]
    assert script(browser, "window.same") is True
    assert words(browser, "#accepted") == "2"
    assert not browser.find_element("id", "empty").is_displayed()
    until(lambda: float(words(browser, "#rate")) > 0)


def test_a_card_says_everything_about_an_event(browser: Any, receiver: Receiver) -> None:
    """Both pictures, name, group, score, person type in words, device and the time it happened."""
    send(receiver, event(ext_data={"person_type": 3}, group_name="北门", score=0.98765), key="k")
    send(receiver, event(ext_data={"person_type": 3}, group_name="北门"), key="k")
    browser.get(receiver.url)
    card = until(lambda: words(browser, ".card"))
    for shown in ("王芳", "Blacklist", "北门", "0.988", "192.168.1.25", "capture camera"):
        assert shown in card
    assert re.search(r"2019-06-1[23] \d\d:\d\d:\d\d · arrived \d+ days later", card)
    assert "1 repeat, 1 with another body" in card
    loaded = "[...document.querySelectorAll('.card img')].map(i => i.complete && i.naturalWidth)"
    until(lambda: script(browser, loaded) == [96, 96])


def test_missing_and_unreadable_pictures_leave_a_placeholder(
    browser: Any, receiver: Receiver
) -> None:
    """A stripped picture, and one that is no picture, say so in its place."""
    send(receiver, event(reg_pic=None, ext_data={"spot_pic": text(b"<svg onload=alert(1)>")}))
    browser.get(receiver.url)
    until(lambda: "spot picture: not shown" in words(browser, ".card"))
    assert "no registered picture" in words(browser, ".card")


def test_what_the_schema_says_stands_in_place(browser: Any, receiver: Receiver) -> None:
    """A refused event is a card like the others, with every reason on it."""
    send(receiver, event(score="high", ext_data={"dev_sno": None}))
    send(receiver, event())
    browser.get(receiver.url)
    reasons = until(lambda: words(browser, ".card.refused .reasons"))
    assert reasons.split("\n") == [
        "ext_data.dev_sno: is missing",
        "score: must be a number, is text",
    ]
    assert (words(browser, "#accepted"), words(browser, "#refused")) == ("1", "1")
    assert script(browser, "document.querySelectorAll('.reasons').length") == 1


def test_received_markup_is_shown_as_text(browser: Any, receiver: Receiver) -> None:
    """Script injected into every field of events and reports does nothing, on cards or large."""
    strings = ("identity_id", "identity_name", "group_name", "timestamp", "score", "reg_pic")
    extra = ("device_ip", "ep_id", "person_type", "device_type", "dev_sno", "spot_pic")
    evil = event(**dict.fromkeys(strings, EVIL), ext_data=dict.fromkeys(extra, EVIL))
    evil[EVIL] = evil["ext_data"][EVIL] = EVIL
    send(receiver, evil, key="refused" + EVIL)
    send(receiver, event(
        **dict.fromkeys(strings[:3], EVIL),
        ext_data={**dict.fromkeys(("device_ip", "ep_id", "dev_sno"), EVIL), EVIL: [EVIL]},
    ), key="accepted" + EVIL)  # fmt: skip
    device = {**status()["sub_devices"][0], "ep_id": "x__" + EVIL, "ep_name": EVIL, "ep_ip": EVIL}
    device["ep_ext_data"] = {"group_name": EVIL, "sw_version": EVIL}
    report = dict.fromkeys(("gateway_ip", "gateway_name", "gateway_sn", "dev_sno"), EVIL)
    versions = {"sw_version": EVIL, "sdk_version": EVIL}
    report["gateway_ext_data"] = {**status()["gateway_ext_data"], **versions}
    send(receiver, status(**report, sub_devices=[device]), "/DeviceStatus")
    send(receiver, status(gateway_sn="2", gateway_status=EVIL), "/DeviceStatus")
    browser.get(receiver.url)
    until(lambda: len(names(browser)) == 2)
    assert names(browser) == [EVIL, EVIL]
    assert EVIL in words(browser, ".gateway h3") + words(browser, ".gateway:last-child h3")
    for number in (1, 2):
        click(browser, f".card:nth-child({number}) .photos")
        until(lambda: EVIL[:20] in words(browser, "#detail-body pre"))
        until(lambda: EVIL in words(browser, "#detail-body .fields"))
        assert words(browser, "#detail-name") == EVIL
        click(browser, "#close")
    assert script(browser, "window.hacked") is None
    assert script(browser, "document.scripts.length") == 1
    assert script(browser, "document.querySelectorAll('[onerror],[src=x],b b').length") == 0


def test_the_policy_stops_what_would_still_get_in(browser: Any, receiver: Receiver) -> None:
    """Even with markup in the document an inline script does not run, nor is anyone else asked."""
    browser.get(receiver.url)
    until(lambda: words(browser, "#live") == "Live")
    browser.execute_script(
        "window.refused = [];"
        "addEventListener('securitypolicyviolation', v => refused.push(v.effectiveDirective));"
        "const script = document.createElement('script');"
        "script.textContent = 'window.hacked = 1'; document.body.append(script);"
        "document.body.insertAdjacentHTML('beforeend', '<img src=http://other.example/x.png>');"
    )
    until(lambda: set(script(browser, "window.refused")) == {"script-src-elem", "img-src"})
    assert script(browser, "window.hacked") is None
    assert len(browser.get_log("browser")) == 2  # the two refusals
    hosts = (
        "[...new Set(performance.getEntriesByType('resource').map(r => new URL(r.name).origin))]"
    )
    assert set(script(browser, hosts)) <= {receiver.url, "http://other.example"}


def test_filters_narrow_what_is_shown(browser: Any, receiver: Receiver) -> None:
    """By words in name, group or device, by person type, by refusal; live ones too."""
    send(receiver, event(identity_name="张伟", group_name="North"))
    send(
        receiver, event(identity_name="Anna", ext_data={"person_type": 4, "device_ip": "10.0.0.7"})
    )
    send(receiver, event(identity_name="Bob", score="?", ext_data={"person_type": 4}))
    browser.get(receiver.url)
    until(lambda: names(browser) == ["Bob", "Anna", "张伟"])
    box = browser.find_element("id", "words")
    for typed, left in (("伟", ["张伟"]), ("10.0.0", ["Anna"]), ("NORTH", ["张伟"]), ("%", [])):
        box.clear()
        box.send_keys(typed)
        until(lambda left=left: names(browser) == left)
    assert "No event matches" in words(browser, "#empty")
    box.clear()
    box.send_keys(" ")
    click(browser, "#person-type option[value='4']")
    until(lambda: names(browser) == ["Bob", "Anna"])
    click(browser, ".toggle")
    until(lambda: names(browser) == ["Bob"])
    send(receiver, event(identity_name="accepted stranger", ext_data={"person_type": 4}))
    send(receiver, event(identity_name="refused stranger", score="?", ext_data={"person_type": 4}))
    until(lambda: names(browser) == ["refused stranger", "Bob"])


def test_a_click_shows_an_event_large(browser: Any, receiver: Receiver) -> None:
    """Large pictures, every field and the JSON; arrows go to the neighbours, Escape closes."""
    from selenium.webdriver.common.keys import Keys

    large = text(jpeg("olive", 1280, 720))
    send(receiver, event(identity_name="older", ext_data={"spot_pic": large}), key="key-of-older")
    send(receiver, event(identity_name="newer"))
    browser.get(receiver.url)
    until(lambda: len(names(browser)) == 2)
    click(browser, ".card:nth-child(2) .photos")
    until(lambda: "key-of-older" in words(browser, "#detail-body"))
    until(lambda: script(browser, "document.querySelector('.large img').naturalWidth") == 1280)
    assert script(browser, "document.querySelector('.large img').clientWidth") > 400
    assert '"confidence": 90' in words(browser, "#detail-body pre")
    assert "spot_pic" not in words(browser, "#detail-body pre")
    page = browser.switch_to.active_element
    page.send_keys(Keys.ARROW_LEFT)
    until(lambda: words(browser, "#detail-name") == "newer")
    page.send_keys(Keys.ESCAPE)
    until(lambda: not script(browser, "document.querySelector('dialog').open"))


def test_devices_show_their_state_and_usage(browser: Any, receiver: Receiver) -> None:
    """Each box with its newest report, three plots of what it uses, and its capture devices."""
    for percent in (5, 50, 20.5):
        usage = {**status()["gateway_ext_data"], "cpu_usage": percent}
        send(receiver, status(gateway_ext_data=usage), "/DeviceStatus")
    send(receiver, status(gateway_status="asleep"), "/DeviceStatus")
    send(receiver, status(gateway_sn="other", gateway_name="other box"), "/DeviceStatus")
    browser.get(receiver.url)
    until(lambda: script(browser, "document.querySelectorAll('.gateway').length") == 2)
    box = words(browser, ".gateway:last-child")
    for shown in ("北门 box", "192.168.1.19", "20.5 %", "77 %", "of 1.55 GB", "9.4 %", "lobby",
                  "capture camera · staff · 1.2", "gateway_status: must be one of"):  # fmt: skip
        assert shown in box
    assert words(browser, "#devices-note") == "2 gateways, 0 of 2 devices online"
    lines = script(browser, "[...document.querySelectorAll('.gateway:last-child .line')]"
                            ".map(line => line.points.numberOfItems)")  # fmt: skip
    assert lines == [3, 3, 3]
    until(lambda: re.search(r"\d s ago", words(browser, ".gateway:last-child")))


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_needs_no_sideways_scrolling(browser: Any, receiver: Receiver, width: int) -> None:
    """Not even with words that do not break, with the devices open, or in a large event."""
    unbroken = "W" * 150
    fields = dict.fromkeys(("identity_id", "identity_name", "group_name", "score"), unbroken)
    send(receiver, event(**fields, ext_data={"device_ip": unbroken, "ep_id": unbroken}))
    send(receiver, status(gateway_name=unbroken, gateway_sn=unbroken), "/DeviceStatus")
    resize(browser, width, 844)
    browser.get(receiver.url)
    until(lambda: names(browser) == [unbroken])
    click(browser, "#devices summary")
    until(lambda: unbroken in words(browser, ".gateway"))
    right = "Math.max(...['.name', '.score', '.chip'].map(s => box(s).right)) < box('.card').right"
    box = "const box = s => document.querySelector(s).getBoundingClientRect(); "
    assert browser.execute_script(f"{box} return {right}")
    fits = "document.documentElement.scrollWidth <= innerWidth && innerWidth"
    assert script(browser, fits) == width
    click(browser, ".card .photos")
    until(lambda: unbroken in words(browser, "#detail-body pre"))
    dialog = "(d => d.scrollWidth <= d.clientWidth)(document.querySelector('dialog'))"
    assert script(browser, dialog)
    assert script(browser, fits) == width


def test_dark_and_light_follow_the_system(browser: Any, receiver: Receiver) -> None:
    """Text and ground change places."""
    browser.get(receiver.url)
    seen = []
    for scheme in ("light", "dark"):
        feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
        color = script(browser, "getComputedStyle(document.body).backgroundColor")
        seen.append(sum(map(int, re.findall(r"\d+", color)[:3])))
    assert seen[0] > 600
    assert seen[1] < 100


def test_older_events_come_on_demand(browser: Any, receiver: Receiver) -> None:
    """The page begins with 60 cards and fetches older ones, each once, down to the first."""
    for number in range(130):
        receiver.store.add_event(event(identity_name=str(number)), [], None, b"")
    browser.get(receiver.url)
    for shown in (60, 120, 130):
        until(lambda shown=shown: len(names(browser)) == shown)
        assert names(browser) == [str(number) for number in range(129, 129 - shown, -1)]
        if shown < 130:
            browser.execute_script("document.querySelector('#older').click()")
    until(lambda: not browser.find_element("id", "older").is_displayed())
    send(receiver, event(identity_name="new"))
    until(lambda: names(browser)[:2] == ["new", "129"])


def test_pause_holds_the_page_still(browser: Any, receiver: Receiver) -> None:
    """While paused nothing moves; afterwards everything that came is there."""
    browser.get(receiver.url)
    until(lambda: words(browser, "#live") == "Live")
    click(browser, "#live")
    assert words(browser, "#live") == "Paused"
    asked = script(browser, "performance.getEntriesByType('resource').length")
    send(receiver, event())
    time.sleep(1.5)  # longer than the page waits between two questions
    assert script(browser, "performance.getEntriesByType('resource').length") == asked
    click(browser, "#live")
    until(lambda: names(browser) == ["王芳"])


def test_the_page_outlives_the_receiver(browser: Any, tmp_path: Path) -> None:
    """It says that nobody answers, and shows another receiver's events once one is there."""
    with Receiver(dir=tmp_path / "first") as receiver:
        send(receiver, event(identity_name="first"))
        browser.get(receiver.url)
        until(lambda: names(browser) == ["first"])
    until(lambda: words(browser, "#live") == "No answer, trying again")
    with Receiver(port=receiver.port, dir=tmp_path / "second") as receiver:
        until(lambda: words(browser, "#live") == "Live")
        assert names(browser) == []
        send(receiver, event(identity_name="second"))
        until(lambda: names(browser) == ["second"])
        browser.get("about:blank")
    browser.get_log("browser")  # the failed questions


def test_ten_thousand_events_are_still_fast(browser: Any, tmp_path: Path) -> None:
    """First paint within 2 s, a question within 0.3 s, a search through all within 1 s."""
    store = Store(tmp_path)
    pictures = {"reg_pic": text(jpeg()), "spot_pic": text(jpeg("maroon"))}
    for number in range(10_000):
        extra = {"spot_pic": pictures["spot_pic"], "person_type": number % 5 + 1}
        name = "needle" if number == 7 else f"person {number}"
        sent = event(identity_name=name, reg_pic=pictures["reg_pic"], ext_data=extra)
        store.add_event(sent, [], str(number), b"")
    store.close()
    with Receiver(dir=tmp_path) as receiver:
        browser.get(receiver.url)
        until(lambda: len(names(browser)) == 60)
        paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
        assert until(lambda: script(browser, paint)) < 2000
        asked = time.monotonic()
        found = requests.get(receiver.url + "/api/feed", timeout=10).json()
        assert time.monotonic() - asked < 0.3
        assert (len(found["events"]), found["more"], found["counts"]["accepted"]) == (
            60,
            True,
            10_000,
        )
        began = time.monotonic()
        browser.find_element("id", "words").send_keys("needle")
        until(lambda: names(browser) == ["needle"])
        assert time.monotonic() - began < 1 + 0.5  # the pauses of typing are the page's own
        browser.find_element("id", "words").clear()
        browser.find_element("id", "words").send_keys(" ")
        until(lambda: len(names(browser)) == 60)
        began = time.monotonic()
        send(receiver, event(identity_name="after all"))
        until(lambda: names(browser)[0] == "after all")
        assert time.monotonic() - began < 2.5  # asked once a second
        browser.get("about:blank")
