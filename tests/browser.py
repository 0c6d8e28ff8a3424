"""Open a page in a browser without a window: `python browser.py PAGE WIDTH light|dark [SCRIPT]`
prints, as JSON, what the page asked for, what it complained of, what the script gives, and the
share of pixels of each of the commonest colours.

Qt wants the main thread of a process, so that the tests start this one.
"""

import json
import os
import sys
from collections import Counter


def main(page, width, scheme, script="null"):
    dark = " --blink-settings=preferredColorScheme=0" if scheme == "dark" else ""
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = f"--disable-gpu --no-sandbox{dark}"
    from PyQt6.QtCore import QTimer, QUrl
    from PyQt6.QtWebEngineCore import QWebEnginePage, QWebEngineUrlRequestInterceptor
    from PyQt6.QtWebEngineWidgets import QWebEngineView
    from PyQt6.QtWidgets import QApplication

    seen = {"asked": [], "complaints": [], "script": None, "colors": {}}

    class Requests(QWebEngineUrlRequestInterceptor):
        def interceptRequest(self, info):
            seen["asked"].append(info.requestUrl().toString())

    class Page(QWebEnginePage):
        def javaScriptConsoleMessage(self, level, message, line, source):
            seen["complaints"].append(message)

    app = QApplication(sys.argv[:1])
    view = QWebEngineView()
    opened, requests = Page(view), Requests()
    opened.setUrlRequestInterceptor(requests)
    view.setPage(opened)
    view.resize(int(width), 1200)
    view.show()

    def grab():
        image = view.grab().toImage()
        counts = Counter(
            image.pixelColor(x, y).name()
            for x in range(0, image.width(), 2)
            for y in range(0, image.height(), 2)
        )
        seen["colors"] = {name: n / counts.total() for name, n in counts.most_common(60)}
        app.quit()

    def after(result):
        seen["script"] = result
        QTimer.singleShot(700, grab)  # until it is painted

    view.loadFinished.connect(lambda ok: opened.runJavaScript(script, after))
    view.load(QUrl.fromLocalFile(os.path.abspath(page)))
    QTimer.singleShot(60_000, app.quit)
    app.exec()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
