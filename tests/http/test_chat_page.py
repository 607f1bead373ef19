"""The chat page in headless Chromium."""

import time

import cdp
import pytest

pytestmark = pytest.mark.skipif(not cdp.find_chromium(), reason="chromium is not installed")
TEXT = "document.querySelector('.msg.assistant .body')?.textContent || ''"


@pytest.fixture
def page(server):
    with cdp.Browser() as b:
        b.open(server.url + "/")
        b.wait(f"document.getElementById('model').textContent === {server.model!r}")
        yield b


def ask(page, text, max_tokens):
    page.js(f"settings.max_tokens = '{max_tokens}'; $('input').focus()")
    page.type(text)
    page.key("Enter", 13)


def test_answer(page, server):
    ask(page, "Say hello.", 12)
    page.wait("document.querySelector('.msg.assistant .foot')")
    assert page.js(TEXT)
    assert page.js("document.querySelector('.msg.user').textContent").endswith("Say hello.")
    assert "tokens" in page.js("$('used').textContent") and "tokens/s" in page.js("$('rate').textContent")
    assert page.js("+$('meter').getAttribute('aria-valuenow') >= 0 && $('meter').firstElementChild.style.width !== ''")
    assert page.problems() == []
    assert all(u.startswith((server.url, "data:")) for u in page.requests())


def test_pressed_cache_is_shown(page, server):
    page.js("$('gear').click()")
    page.wait("$('kv_policy').options.length > 5")
    page.js("""for (const [id, value] of [['kv_policy', 'ems'], ['kv_budget', '32']]) {
                 $(id).value = value; $(id).dispatchEvent(new Event('input'));
               }
               $('settings').close()""")
    ask(page, "Here is a list. " + " ".join(f"Item {i} costs {7 * i} coins." for i in range(20)) + " What does item 3 cost?", 8)
    page.wait("document.querySelector('.cache .words')?.childNodes.length > 3")
    page.wait("document.querySelector('.msg.assistant .foot')")
    assert page.js("document.querySelector('.cache summary').textContent").startswith("Cache pressed by ems to 32 tokens a head: ")
    assert "costs 7 coins" in page.js("document.querySelector('.cache .words').textContent")
    assert page.js("document.querySelectorAll('.cache .words .gone').length") > 0
    layers, heads = page.js("[document.querySelector('.cache canvas').width, document.querySelector('.cache canvas').height]")
    assert page.js("document.querySelector('.cache canvas').getAttribute('aria-label')").startswith(f"Slots kept, {layers} layers by {heads} heads")
    page.js("document.querySelector('.cache').open = true")
    assert page.js("""(() => { const c = document.querySelector('.cache canvas');
                      return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v > 0); })()""")
    assert page.js("document.documentElement.scrollWidth <= innerWidth")
    assert page.problems() == []
    page.js("$('reset').click()")
    assert page.js("$('kv_policy').value === '' && $('kv_budget').value === ''")


def test_stop_with_escape(page, server):
    ask(page, "Tell me a very long story.", 2000)
    page.wait(f"({TEXT}).length > 5")
    if page.js("$('go').getAttribute('aria-label')") != "Stop":
        pytest.skip("this model has answered before anybody could stop it")
    page.key("Escape", 27)
    page.wait("document.querySelector('.msg.assistant .foot')?.textContent.includes('stopped')", 5)
    assert page.js("document.activeElement.id") == "input"
    server.wait_idle(5)


def test_shift_enter_is_a_new_line(page):
    page.type("one")
    page.key("Enter", 13, modifiers=8)
    page.type("two")
    assert page.js("$('input').value") == "one\ntwo"
    assert page.js("document.querySelectorAll('.msg').length") == 0


def test_enter_of_an_input_method_sends_nothing(page):
    page.type("ni hao")
    page.key("Enter", 229)
    assert page.js("$('input').value.startsWith('ni hao')")
    assert page.js("document.querySelectorAll('.msg').length") == 0


def test_text_is_never_html(page):
    page.js("""addMessage('user', '<img src=x onerror="window.hacked=1">');
               const m = addMessage('assistant', '');
               m.body.append(markdown('<script>window.hacked=1<\\/script> **b <i>x</i>** `<b>`\\n```html\\n<img src=x onerror=window.hacked=1>\\n```\\n- <u>li</u>'))""")
    time.sleep(0.2)
    assert page.js("window.hacked") is None
    assert page.js("document.querySelectorAll('#log img, #log script, #log i, #log u').length") == 0
    assert page.js("document.querySelector('.block code').textContent") == "<img src=x onerror=window.hacked=1>"


def test_error_is_shown(page):
    page.js("model = 'no-such-model'")
    ask(page, "hi", 4)
    page.wait("document.querySelector('.fail[role=alert]')?.textContent.includes('no-such-model')")
    assert page.js("$('go').getAttribute('aria-label')") == "Send"


def test_refused_message_goes_back(page, server):
    """A message without an answer is not sent with the next one, and an answer stays until there is another."""
    said = "messages.map(m => m.role + ': ' + m.content)"
    page.js("model = 'no-such-model'")
    ask(page, "Say hello.", 8)
    page.wait("document.querySelector('.fail') && !busy")
    assert page.js("[messages.length, document.querySelectorAll('.msg').length, $('input').value]") == [0, 0, "Say hello."]
    page.js(f"model = {server.model!r}")
    page.key("Enter", 13)
    page.wait("document.querySelector('.msg.assistant .foot')")
    before = page.js(said)
    assert before[0] == "user: Say hello." and len(before) == 2 and before[1] != "assistant: "
    page.js("model = 'no-such-model'; document.querySelector('.foot button:nth-child(2)').click()")
    page.wait("document.querySelector('.fail') && !busy")
    assert page.js(said) == before and page.js("$('input').value") == ""
    assert before[1].startswith("assistant: " + page.js(TEXT)[:5])
    page.js("$('input').focus()")
    page.type("And now?")
    page.key("Enter", 13)
    page.wait("document.querySelectorAll('.fail').length === 1 && !busy && $('input').value === 'And now?'")
    assert page.js(said) == before


def test_theme_and_settings_are_kept(page, server):
    light = page.js("getComputedStyle(document.body).backgroundColor")
    page.js("$('theme').click()")
    dark = page.js("getComputedStyle(document.body).backgroundColor")
    assert light != dark
    page.js("$('gear').click(); $('temperature').value = 0.25; $('temperature').dispatchEvent(new Event('input'))")
    page.open(server.url + "/")
    page.wait("document.readyState === 'complete' && typeof settings === 'object'")
    assert page.js("getComputedStyle(document.body).backgroundColor") == dark
    assert page.js("settings.temperature") == "0.25"


@pytest.mark.parametrize("width,height", [(360, 640), (390, 844), (1400, 900)])
def test_fits_the_screen(page, width, height):
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
    page.js("addMessage('user', 'x'.repeat(400)); addMessage('assistant', '').body.append(markdown('```\\n' + 'y'.repeat(400) + '\\n```'))")
    assert page.js("document.documentElement.scrollWidth <= innerWidth")
    assert page.js("$('form').getBoundingClientRect().bottom <= innerHeight")


def test_controls_have_names(page):
    assert page.js("[...document.querySelectorAll('button')].every(b => (b.getAttribute('aria-label') || b.textContent).trim())")
    assert page.js("$('log').getAttribute('aria-live')") == "polite"
