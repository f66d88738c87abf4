#!/usr/bin/env python3
"""Draws every panel of every dashboard here from a Prometheus, as PNG, so that somebody can look at all of them.

    python3 -m pip install matplotlib
    python3 dashboards/draw.py --url http://127.0.0.1:9090 --minutes 15 --out /tmp/panels

One picture a dashboard. It draws what Grafana would ask for: the same JSON, the same queries, units, thresholds and flips.
Not part of any test.
"""

import argparse
import json
import math
import pathlib
import time
import urllib.parse
import urllib.request

import matplotlib

matplotlib.use("Agg")
import matplotlib.dates as dates
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

HERE = pathlib.Path(__file__).parent
COLUMNS, CELL = 24, 0.62  # of Grafana's grid; inches a column
NAMED = {"green": "#56a64b", "orange": "#ff9830", "red": "#e02f44", "blue": "#3274d9"}


class Prometheus:
    def __init__(self, url, start, end):
        self.url, self.start, self.end = url, start, end
        self.step = max(1, round((end - start) / 240))
        self.rate_interval = max(4 * self.step, 60)

    def ask(self, path, **query):
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(address, timeout=30) as answer:
            return json.load(answer)["data"]["result"]

    def filled_in(self, expression):
        for name, value in {
            "$__rate_interval": f"{self.rate_interval}s",
            "$__interval": f"{self.step}s",
            "$__range": f"{round(self.end - self.start)}s",
            "$job": ".*",
        }.items():
            expression = expression.replace(name, value)
        return expression

    def lines(self, expression):
        return self.ask("query_range", query=self.filled_in(expression), start=self.start, end=self.end, step=self.step)

    def now(self, expression):
        return self.ask("query", query=self.filled_in(expression), time=self.end)


def legend(target, labels):
    text = target["legendFormat"]
    for name, value in labels.items():
        text = text.replace("{{" + name + "}}", value)
    while "{{" in text:
        text = text[: text.index("{{")] + text[text.index("}}") + 2 :]
    return text.strip()


def shown(unit):
    def scaled(value, steps):
        for size, word in steps:
            if abs(value) >= size:
                return f"{value / size:.3g} {word}"
        return "0"

    def text(value, _=None):
        if value is None or math.isnan(value):
            return "–"
        if unit == "percentunit":
            return f"{100 * value:.3g} %"
        if unit == "s":
            return scaled(value, [(3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")])
        if unit == "bytes":
            return scaled(value, [(2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")])
        number = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        return number + {"ops": " /s", "reqps": " /s"}.get(unit, "")

    return text


def steps_of(panel):
    return panel["fieldConfig"]["defaults"]["thresholds"]["steps"]


def worded(panel):
    """A value as the panel says it: its word, if it has one."""
    unit = shown(panel["fieldConfig"]["defaults"]["unit"])
    words = {float(value): word["text"] for m in panel["fieldConfig"]["defaults"]["mappings"] for value, word in m["options"].items()}
    return lambda value: words[value] if value in words else unit(value)


def draw_stat(axes, panel, prometheus):
    unit = worded(panel)
    found = [s for t in panel["targets"] for s in prometheus.now(t["expr"])]
    value = float(found[0]["value"][1]) if found else None
    color = "#888888"
    for step in steps_of(panel):
        if value is not None and value >= (step["value"] if step["value"] is not None else -math.inf):
            color = NAMED.get(step["color"], step["color"])
    axes.text(0.5, 0.45, unit(value) if found else "No data", ha="center", va="center", fontsize=24, color=color)
    axes.axis("off")


def draw_lines(axes, panel, prometheus, flips):
    unit, empty = shown(panel["fieldConfig"]["defaults"]["unit"]), True
    highest = 0.0
    for target in panel["targets"]:
        for series in prometheus.lines(target["expr"]):
            points = [(float(t), float(v)) for t, v in series["values"]]
            points = [(t, v if math.isfinite(v) else math.nan) for t, v in points]
            finite = [v for _, v in points if not math.isnan(v)]
            if not finite:
                continue
            empty, highest = False, max(highest, *finite)
            name = f"{legend(target, series['metric'])}  last {unit(points[-1][1])}  max {unit(max(finite))}"
            axes.plot([t / 86400 for t, _ in points],
                      [v for _, v in points], linewidth=1.1, label=name)
    for step in steps_of(panel)[1:]:
        # Grafana shows a threshold when it is within sight.
        if step["value"] <= 2 * highest:
            axes.axhline(step["value"], color=NAMED.get(step["color"], step["color"]), linestyle="--", linewidth=0.8)
    for moment in flips:
        axes.axvline(moment / 86400, color="purple", linewidth=0.6, alpha=0.6)
    axes.set_xlim(prometheus.start / 86400, prometheus.end / 86400)
    axes.set_ylim(-0.03 * highest if highest else -0.03, 1.1 * highest if highest else 1)
    axes.yaxis.set_major_formatter(FuncFormatter(unit))
    axes.xaxis.set_major_locator(dates.AutoDateLocator(maxticks=6))
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M:%S"))
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    if empty:
        axes.text(0.5, 0.5, "No data", transform=axes.transAxes, ha="center", color="#888888", fontsize=14)
    else:
        axes.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False)


def draw(path, prometheus, out):
    dashboard = json.loads(path.read_text())
    panels = dashboard["panels"]
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels)
    figure = plt.figure(figsize=(COLUMNS * CELL, height * 0.45))
    annotation = dashboard["annotations"]["list"][0]
    flips = sorted({float(t) for s in prometheus.lines(annotation["expr"]) for t, _ in s["values"]})
    flips = [t for n, t in enumerate(flips) if n == 0 or t - flips[n - 1] > 2 * prometheus.step]
    empty = []
    for panel in panels:
        x, y, w, h = (panel["gridPos"][k] for k in "xywh")
        if panel["type"] == "row":
            figure.text(0.01, 1 - (y + 0.7) / height, panel["title"], fontsize=12, weight="bold")
            continue
        low = 0.36 if panel["type"] == "timeseries" else 0.05
        box = [(x + 1.3) / COLUMNS, 1 - (y + h * (1 - low)) / height, (w - 1.6) / COLUMNS, h * (0.88 - low) / height]
        axes = figure.add_axes(box)
        axes.set_title(panel["title"], fontsize=9)
        if panel["type"] == "stat":
            draw_stat(axes, panel, prometheus)
        else:
            draw_lines(axes, panel, prometheus, flips)
        if any(text.get_text() == "No data" for text in axes.texts):
            empty.append(panel["title"])
    figure.savefig(out / f"{path.stem}.png", dpi=90)
    plt.close(figure)
    print(f"{path.stem}: {len(panels)} panels and rows, {len(flips)} flips, empty: {', '.join(empty) or 'none'}")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--url", default="http://127.0.0.1:9090", help="where Prometheus is")
    arguments.add_argument("--minutes", type=float, default=15, help="how far back")
    arguments.add_argument("--end", type=float, default=time.time(), help="until when, seconds since 1970 (now)")
    arguments.add_argument("--out", type=pathlib.Path, default=pathlib.Path("panels"), help="folder for the pictures")
    given = arguments.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    prometheus = Prometheus(given.url, given.end - 60 * given.minutes, given.end)
    for path in sorted(HERE.glob("*.json")):
        draw(path, prometheus, given.out)


if __name__ == "__main__":
    main()
