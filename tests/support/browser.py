"""Chromium as a person has it: at a width, in light or dark; what it says and what it asks for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement


@contextmanager
def chromium() -> Iterator[Chrome]:
    """The system's Chromium, without a window."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    service = shutil.which("chromedriver")
    if browser is None or service is None:
        pytest.fail("pages need a browser; type: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = browser
    # Without a sandbox, for root; a container's shared memory is small.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with Chrome(options=options, service=Service(service)) as driver:
        yield driver


class Window:
    """A browser that shows pages below an address."""

    def __init__(self, driver: Chrome, address: str) -> None:
        self.driver, self.address = driver, address

    def resize(self, width: int) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def open(self, path: str = "", *, width: int = 1400, scheme: str = "light") -> None:
        self.resize(width)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        self.driver.get("about:blank")
        self.driver.get(self.address + path)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def run(self, script: str, *words: Any) -> Any:
        return self.driver.execute_script(script, *words)

    def logged(self) -> list[str]:
        """Warnings and errors of the console since it was last asked."""
        entries = self.driver.get_log("browser")
        return [str(entry["message"]) for entry in entries if entry["level"] != "INFO"]

    def requests(self) -> set[str]:
        """The addresses that were asked for since this was last asked."""
        entries = [json.loads(entry["message"]) for entry in self.driver.get_log("performance")]
        return {
            entry["message"]["params"]["request"]["url"].partition("#")[0]
            for entry in entries
            if entry["message"]["method"] == "Network.requestWillBeSent"
        }
