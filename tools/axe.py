"""Accessibility of the built site: axe-core's findings on every page, light and dark, wide and narrow.

    npm pack axe-core && tar xzf axe-core-*.tgz          # once; unpacks to package/
    make book && .venv/bin/python tools/axe.py package/axe.min.js [PAGE ...] [--pictures FOLDER] [--site FOLDER]

Needs Chromium and the package websocket-client, which JupyterLab brings. Exit code 1 when there is a finding.
"""

import argparse
import base64
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import websocket

BOOK = Path(__file__).resolve().parent.parent / "build" / "book"
RUN = """axe.run().then(found => JSON.stringify(found.violations.map(rule => [rule.id, rule.help,
    rule.nodes.map(node => node.target.join(" ") + ": " + node.failureSummary)])))"""


class Browser:
    """Chromium without a window, driven over its debugging port."""

    def __init__(self, folder: str):
        program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-port=0",
            "--remote-allow-origins=*",
        ]
        self.process = subprocess.Popen(
            [program, *options, f"--user-data-dir={folder}", "about:blank"], stderr=subprocess.PIPE, text=True
        )
        port = next(match[1] for line in self.process.stderr if (match := re.search(r"127\.0\.0\.1:(\d+)/", line)))
        made = subprocess.run(["curl", "-s", "-X", "PUT", f"http://127.0.0.1:{port}/json/new"], capture_output=True)
        address = json.loads(made.stdout)["webSocketDebuggerUrl"]
        self.socket = websocket.create_connection(address, timeout=180)
        self.number = 0

    def __call__(self, method: str, **parameters) -> dict:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def evaluate(self, script: str):
        answer = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def open(self, page: Path, theme: str, width: int) -> None:
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self("Page.navigate", url=page.as_uri())
        self.evaluate(
            "new Promise(done => { const see = () => location.href != 'about:blank'"
            " && document.readyState == 'complete' ? setTimeout(done, 300) : setTimeout(see, 50); see(); })"
        )
        self.evaluate(f"document.body.dataset.theme = '{theme}'")

    def picture(self, path: Path, width: int) -> None:
        height = min(self.evaluate("document.documentElement.scrollHeight"), 30_000)
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        path.write_bytes(
            base64.b64decode(self("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"])
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("axe", type=Path, help="axe.min.js")
    parser.add_argument("pages", nargs="*", help="such as ch06/ch06.html; default: all")
    parser.add_argument("--site", type=Path, default=BOOK)
    parser.add_argument("--pictures", type=Path, help="also write each page as PNG there")
    args = parser.parse_args()
    axe, site, findings = args.axe.read_text(encoding="utf-8"), args.site.resolve(), 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(folder)
        try:
            for path in [site / name for name in args.pages] or sorted(site.rglob("*.html")):
                for width in (1200, 400):
                    for theme in ("light", "dark"):
                        browser.open(path, theme, width)
                        browser.evaluate(axe + ";0")
                        name = f"{path.relative_to(site)} {theme} {width}"
                        for rule, text, nodes in json.loads(browser.evaluate(RUN)):
                            findings += len(nodes)
                            print(f"{name}: {rule}: {text}: {len(nodes)}\n    {nodes[0]}", flush=True)
                        if browser.evaluate("document.documentElement.scrollWidth > innerWidth"):
                            findings += 1
                            print(f"{name}: wider than the window", flush=True)
                        if args.pictures:
                            args.pictures.mkdir(parents=True, exist_ok=True)
                            browser.picture(args.pictures / f"{path.stem}-{theme}-{width}.png", width)
        finally:
            browser.process.terminate()
            browser.process.wait()
    print(f"{findings} findings")
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
