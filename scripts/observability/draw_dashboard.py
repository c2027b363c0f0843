#!/usr/bin/env python3
"""Draws the panels of a dashboard, as SVG, from what a Prometheus answers to their queries: one file per row.

  scripts/observability/draw_dashboard.py --out DIRECTORY [--prometheus http://127.0.0.1:9090] [--minutes 5]
      [--interval TIME] [--set instance=.*] [DASHBOARD]

DASHBOARD is dashboards/worker-observability.json unless given. Variables are filled in with ".*" (all), or as --set says.
--interval is the time over which rates are taken: at least two scrapes must lie in it, or panels stay empty. Without it, it is
four times the longest scrape interval that the server uses. Knows the types of panel that dashboard has; needs nothing but
Python. Exit code: 0 drawn; 1 a query failed or the server does not answer; 64 wrong use.
"""

import argparse
import html
import json
import math
import pathlib
import re
import sys
import time
import urllib.parse
import urllib.request

UNIT = 48  # Pixels for one of Grafana's 24 columns.
PITCH = 30  # Pixels for one of Grafana's units of height.
LEGEND = 5  # Series that a legend names.
MOST = 12  # Series that are drawn.
POINTS = 60  # Points of a series.
COLOURS = ["#2e7d32", "#1565c0", "#ef6c00", "#6a1b9a", "#00838f", "#c62828", "#9e9d24", "#4e342e", "#37474f", "#ad1457", "#558b2f", "#283593"]
NAMED = {"green": "#2e7d32", "yellow": "#f9a825", "orange": "#ef6c00", "red": "#c62828"}
PARTS = {"s": 1.0, "ms": 1e-3}


class Server:
    """The part of Prometheus' API that a picture needs."""

    def __init__(self, url, minutes):
        self.url = url.rstrip("/")
        self.end = time.time()
        self.start = self.end - minutes * 60
        self.step = max(1.0, (self.end - self.start) / POINTS)

    def series(self, expression):
        """Every series of the answer: labels, and (time, value) pairs."""
        times = {"start": f"{self.start:.3f}", "end": f"{self.end:.3f}", "step": f"{self.step:.3f}"}
        form = urllib.parse.urlencode({"query": expression, **times}).encode()
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/query_range", form, timeout=30) as answer:
                found = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise SystemExit(f"error: {expression}: {error.read().decode()}") from error
        except OSError as error:
            raise SystemExit(f"error: {self.url} does not answer: {error}") from error
        return [(one["metric"], [(float(t), float(v)) for t, v in one["values"]]) for one in found]

    def rate_interval(self):
        """Four times the longest scrape interval: what Grafana takes rates over."""
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/targets?state=active", timeout=30) as answer:
                targets = json.load(answer)["data"]["activeTargets"]
        except OSError as error:
            raise SystemExit(f"error: {self.url} does not answer: {error}") from error
        return f"{4 * max((milliseconds(one['scrapeInterval']) for one in targets), default=15000)}ms"


class Words(argparse.ArgumentParser):
    def error(self, message):
        self.exit(64, f"[ERROR] {message}: see --help\n")


def milliseconds(duration):
    """What Prometheus writes as 1m30s."""
    units = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
    return sum(int(count) * units[unit] for count, unit in re.findall(r"(\d+)(ms|s|m|h)", duration))


def fill_in(expression, variables, interval):
    """The expression with Grafana's variables in it."""
    expression = expression.replace("$__rate_interval", interval)
    return re.sub(r"\$\{?(\w+)\}?", lambda name: variables.get(name[1], ".*"), expression)


def legend(template, labels):
    return re.sub(r"\{\{(\w+)\}\}", lambda name: labels.get(name[1], ""), template).strip() or "value"


def number(value, unit):
    """As a person would read it."""
    if unit in PARTS:
        seconds = value * PARTS[unit]
        for size, name in ((3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
            if abs(seconds) >= size:
                return f"{seconds / size:.3g} {name}"
        return "0 s" if seconds == 0 else f"{seconds * 1e6:.3g} µs"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "bytes":
        for size, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value:.3g} B"
    if unit == "dateTimeFromNow":
        return f"{max(0.0, time.time() - value / 1000) / 60:.0f} min ago"
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}") + ("/s" if unit == "ops" else "")


def text(x, y, words, size=11, colour="#333", anchor="start", weight="normal"):
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" font-weight="{weight}">{html.escape(str(words))}</text>'


def cut(words, pixels, size=11):
    room = max(1, int(pixels / (size * 0.55)))
    return words if len(words) <= room else words[: room - 1] + "…"


def box(x, y, w, h, colour, opacity=1.0):
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(w, 0):.1f}" height="{max(h, 0):.1f}" fill="{colour}" fill-opacity="{opacity}"/>'


def shown_as(defaults, value):
    """Words and colour of a value, by the mappings and thresholds of its panel."""
    for mapping in defaults.get("mappings", []):
        found = mapping["options"].get(f"{value:g}")
        if found:
            return found["text"], NAMED[found["color"]]
    colour = "green"
    for step in defaults["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            colour = step["color"]
    return number(value, defaults["unit"]), NAMED[colour]


def lines(series, defaults, server, x, y, w, h):
    """A graph with its axes and legend."""
    out = []
    rows = min(len(series), LEGEND)
    bottom, left = y + h - 16 - rows * 14, x + 52
    height, width = bottom - y, w - 60
    stacked = defaults["custom"]["stacking"]["mode"] == "normal"
    series = series[:MOST]
    if stacked:
        below, sums = {}, []
        for name, points in series:
            points = [(t, below.get(t, 0.0) + v) for t, v in points]
            below.update(points)
            sums.append((name, points))
        drawn = list(reversed(sums))
    else:
        drawn = series
    highest = max((v for _, points in drawn for _, v in points), default=1.0)
    limits = [s for s in defaults["thresholds"]["steps"] if s["value"] is not None and defaults["custom"]["thresholdsStyle"]["mode"] == "line"]
    top = defaults.get("max") or (highest * 1.1 if highest > 0 else 1.0)
    at = lambda t, v: (left + (t - server.start) / (server.end - server.start) * width, bottom - min(v, top) / top * height)
    for part in range(5):
        level = y + height * part / 4
        out.append(f'<path d="M{left} {level:.1f}h{width:.0f}" stroke="#e0e0e0"/>')
        out.append(text(left - 4, level + 4, number(top * (4 - part) / 4, defaults["unit"]), 9, "#777", "end"))
    for limit in limits:
        if limit["value"] <= top:
            _, level = at(server.start, limit["value"])
            out.append(f'<path d="M{left} {level:.1f}h{width:.0f}" stroke="{NAMED[limit["color"]]}" stroke-dasharray="6 3"/>')
    order = {name: index for index, (name, _) in enumerate(series)}
    for name, points in drawn:
        colour = COLOURS[order[name] % len(COLOURS)]
        path = " ".join("{:.1f},{:.1f}".format(*at(t, v)) for t, v in points)
        if stacked and points:
            ends = (at(points[-1][0], 0), at(points[0][0], 0))
            area = path + "".join(" {:.1f},{:.1f}".format(*end) for end in ends)
            out.append(f'<polygon points="{area}" fill="{colour}" fill-opacity="0.5"/>')
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    for index, (name, points) in enumerate(series[:rows]):
        level = bottom + 16 + index * 14
        more = f" and {len(series) - rows} more" if index == rows - 1 and len(series) > rows else ""
        last = number(points[-1][1], defaults["unit"])
        out.append(box(left, level - 7, 9, 3, COLOURS[index % len(COLOURS)]))
        out.append(text(left + 13, level, cut(name + more, width - 80, 10), 10))
        out.append(text(x + w - 8, level, last, 10, "#333", "end"))
    return out


def tiles(series, defaults, server, x, y, w, h):
    """One coloured tile per series."""
    out, columns = [], max(1, math.ceil(math.sqrt(len(series) * w / h / 2)))
    high = h / math.ceil(len(series) / columns)
    for index, (name, points) in enumerate(series):
        words, colour = shown_as(defaults, points[-1][1])
        left, top = x + 8 + index % columns * (w - 16) / columns, y + index // columns * high
        wide = (w - 16) / columns - 4
        out.append(box(left, top, wide, high - 4, colour))
        out.append(text(left + wide / 2, top + high / 2 - 4, words, 16, "#fff", "middle", "bold"))
        out.append(text(left + wide / 2, top + high / 2 + 12, cut(name, wide, 10), 10, "#fff", "middle"))
    return out


def bands(series, defaults, server, x, y, w, h):
    """One band per series, coloured by its state."""
    out, high = [], min(40, h / max(1, len(series)))
    left, width = x + 52, w - 60
    for index, (name, points) in enumerate(series):
        top = y + index * high
        out.append(text(left - 6, top + high / 2 + 4, cut(name, 46), 11, "#333", "end"))
        wide = server.step / (server.end - server.start) * width + 0.5
        for t, value in points:
            out.append(box(left + (t - server.start) / (server.end - server.start) * width - wide, top, wide, high - 6, shown_as(defaults, value)[1]))
        out.append(text(left + width - 4, top + high / 2 + 2, shown_as(defaults, points[-1][1])[0], 11, "#fff", "end", "bold"))
    return out


KINDS = {"timeseries": lines, "stat": tiles, "state-timeline": bands}


def panel(one, server, variables, interval, base):
    place, defaults = one["gridPos"], one["fieldConfig"]["defaults"]
    x, y = place["x"] * UNIT, (place["y"] - base) * PITCH + 34
    w, h = place["w"] * UNIT - 8, place["h"] * PITCH - 8
    series = []
    for target in one["targets"]:
        for labels, points in server.series(fill_in(target["expr"], variables, interval)):
            points = [(t, v) for t, v in points if math.isfinite(v)]
            if points:
                series.append((legend(target["legendFormat"], labels), points))
    if one["type"] != "stat":
        series.sort(key=lambda one: -max(v for _, v in one[1]))
    out = [f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="#fff" stroke="#ccc"/>', text(x + 8, y + 18, one["title"], 13, "#111", weight="bold")]
    inside = (x, y + 30, w, h - 36)
    if series:
        out += KINDS[one["type"]](series, defaults, server, *inside)
    else:
        print(f"no data: {one['title']}", file=sys.stderr)
        out.append(text(x + w / 2, y + h / 2, "no data", 13, "#777", "middle"))
    return out


def rows_of(dashboard):
    """(title, panels) of each row; what stands before the first has the title of the dashboard."""
    rows = [("Overview", [])]
    for one in dashboard["panels"]:
        if one["type"] == "row":
            rows.append((one["title"], []))
        else:
            rows[-1][1].append(one)
    return rows


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    words = Words(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("dashboard", nargs="?", type=pathlib.Path, default=root / "dashboards/worker-observability.json")
    words.add_argument("--out", type=pathlib.Path, required=True)
    words.add_argument("--prometheus", default="http://127.0.0.1:9090")
    words.add_argument("--minutes", type=float, default=5.0)
    words.add_argument("--interval", help="time over which rates are taken (four scrapes)")
    words.add_argument("--set", action="append", default=[], metavar="VARIABLE=REGEX")
    given = words.parse_args()
    if given.interval is not None and not milliseconds(given.interval):
        words.error(f"--interval {given.interval} is not a time such as 15s")
    if any("=" not in one for one in given.set):
        words.error("--set takes VARIABLE=REGEX")
    variables = dict(one.split("=", 1) for one in given.set)
    server = Server(given.prometheus, given.minutes)
    interval = given.interval or server.rate_interval()
    given.out.mkdir(parents=True, exist_ok=True)
    for title, panels in rows_of(json.loads(given.dashboard.read_text())):
        base = min(one["gridPos"]["y"] for one in panels)
        high = (max(one["gridPos"]["y"] + one["gridPos"]["h"] for one in panels) - base) * PITCH + 34
        wide = 24 * UNIT
        out = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" font-family="sans-serif">',
            box(0, 0, wide, high, "#f5f5f5"),
            text(8, 22, title, 16, "#111", weight="bold"),
        ]
        for one in panels:
            out += panel(one, server, variables, interval, base)
        out.append("</svg>")
        path = given.out / f"{title.lower()}.svg"
        path.write_text("\n".join(out) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    sys.exit(main())
