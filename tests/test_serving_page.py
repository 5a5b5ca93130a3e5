"""The page in headless Chromium: two models on one prompt, by keyboard alone, and nothing from elsewhere."""

import itertools
import json
import shutil
import subprocess

import httpx
import pytest

from tests import served

websocket = pytest.importorskip("websocket", reason="websocket-client, which jupyter brings, talks to Chromium")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not shutil.which("chromium"), reason="Debian's package chromium is not installed"),
]


class Browser:
    """A page of a headless Chromium, over its DevTools protocol."""

    def __init__(self, folder):
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += ["--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = folder / "DevToolsActivePort"
        served.until(lambda: port.is_file() and port.read_text().strip(), "Chromium")
        pages = httpx.get(f"http://127.0.0.1:{port.read_text().split()[0]}/json/list").json()
        (address,) = [page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"]
        self.socket, self.numbers = websocket.create_connection(address, timeout=60), itertools.count(1)
        self.asked: list[str] = []

    def call(self, method, **parameters):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            said = json.loads(self.socket.recv())
            if said.get("method") == "Network.requestWillBeSent":
                self.asked.append(said["params"]["request"]["url"])
            if said.get("id") == number:
                return said["result"]

    def value(self, expression):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def press(self, key, code, modifiers=0):
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, modifiers=modifiers,
                      windowsVirtualKeyCode=code)  # fmt: skip


@pytest.fixture
def browser(tmp_path):
    made = Browser(tmp_path)
    yield made
    made.process.terminate()
    made.process.wait()


def test_the_page_by_keyboard(browser):
    with served.running(served.artifact(), served.artifact("other", seed=1)) as server:
        browser.call("Network.enable")
        browser.call("Page.enable")
        browser.call("Page.navigate", url=str(server.base_url))
        served.until(lambda: browser.value("document.querySelectorAll('#first option').length") == 2, "the models")
        assert browser.value("document.activeElement.id") == "prompt"
        assert browser.value("[...document.querySelectorAll('label, button')].every(e => e.textContent.trim())")
        browser.call("Input.insertText", text="The fox")
        browser.press("Tab", 9)
        assert browser.value("document.activeElement.id") == "send"
        browser.press("Tab", 9, modifiers=8)
        browser.press("Enter", 13, modifiers=2)
        served.until(lambda: browser.value("document.querySelectorAll('article').length") == 2, "two answers")
        served.until(lambda: not browser.value("document.querySelector('#send').disabled"), "their end")
        found = browser.value("[...document.querySelectorAll('article .text')].map(e => e.textContent)")
        facts = browser.value("[...document.querySelectorAll('article .facts')].map(e => e.textContent)")
        assert all("128 tokens" in each and "tokens/s" in each for each in facts)
        for name, text in zip(("tiny", "other"), found):
            body = {"model": name, "messages": [{"role": "user", "content": "The fox"}], "temperature": 0}
            told = server.post("/v1/chat/completions", json={**body, "max_tokens": 128, "logprobs": True}).json()
            assert text == "".join(each["token"] for each in told["choices"][0]["logprobs"]["content"])
        assert " %" in browser.value("document.querySelector('.token').title")
        assert "weights" in browser.value("document.querySelector('#memory').textContent")
        assert browser.asked and all(url.startswith((str(server.base_url), "data:")) for url in browser.asked)
