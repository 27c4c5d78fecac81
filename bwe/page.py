"""What the package's HTML pages are made of: style, charts, tables, players of clips, and the document around them.

A page asks nothing of a network: what it shows lies in it, and its content security policy allows nothing else.
Arguments called `..._html` are markup; every other string is text and is escaped here.
"""

from __future__ import annotations

import base64
import html
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bwe import __version__, pictures

escape = html.escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400, 190, 46, 10, 8, 22
"""Of a chart, in units of its SVG: its size, and the margins of the drawing area."""

_MOST_POINTS = 500  # of a line in a chart
_SMOOTHED_ABOVE = 200  # points in a chart
_LOG_ABOVE = 50.0  # spread of a positive quantity from which its axis is logarithmic
_OTHER_COLOURS = 6  # c0, c1, …


def number(value: object) -> str:
    """Four significant digits, or all before the point; a dash for what is no finite number."""
    if isinstance(value, int | float) and math.isfinite(value):
        return f"{value:{',.0f' if 1e4 <= abs(value) < 1e7 else '.4g'}}".replace("-", "−")
    return "–"


def fixed(value: object, digits: int) -> str:
    """With so many digits after the point; a dash for what is no finite number."""
    if isinstance(value, int | float) and math.isfinite(value):
        return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")
    return "–"


def khz(hz: float) -> str:
    return f"{hz / 1000:g} kHz"


def data_uri(kind: str, data: bytes) -> str:
    """Of a media type such as ``image/png``."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@dataclass
class Line:
    """A line of a chart; what is not finite is left out.

    Attributes:
        x, y: of its points.
        colour: of the style, such as "made"; the next of those without a meaning where it has none.
        level: only its last value counts, drawn across the whole chart.
        aside: the axis is made for the other lines, this one may leave the chart.
        band: lines along the lower and upper edge of the band around it.
    """

    x: Sequence[float]
    y: Sequence[float]
    colour: str = ""
    level: bool = False
    aside: bool = False
    band: tuple[Line, Line] | None = None

    def finite(self) -> tuple[np.ndarray, np.ndarray]:
        x, y = np.array(self.x, float), np.array(self.y, float)
        known = np.isfinite(y)
        return x[known], y[known]


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_MOST_POINTS` points, the highest and the lowest of each stretch, so that no spike gets lost."""
    if len(x) <= _MOST_POINTS:
        return x, y
    edges = np.linspace(0, len(x), _MOST_POINTS // 2 + 1).astype(int)
    kept = {a + int(pick(y[a:b])) for a, b in itertools.pairwise(edges) for pick in (np.argmin, np.argmax)}
    chosen = np.array(sorted(kept))
    return x[chosen], y[chosen]


def _smooth(y: np.ndarray) -> np.ndarray:
    """Centred moving average over 4 % of the points, over fewer at the ends."""
    window = np.ones(2 * (len(y) // 50) + 1)
    return np.convolve(y, window, "same") / np.convolve(np.ones_like(y), window, "same")


class Axes:
    """The drawing area of a chart: data to SVG coordinates, and the axes themselves."""

    def __init__(self, x_range: tuple[float, float], values: np.ndarray, log: bool | None = None) -> None:
        low, high = (float(v) for v in np.percentile(values, (1, 99) if len(values) > _SMOOTHED_ABOVE else (0, 100)))
        self.log = low > 0 and high / low > _LOG_ABOVE if log is None else log
        if self.log:
            low, high = math.log10(low), math.log10(high)
        elif 0 <= low <= 0.4 * high:
            low = 0.0
        margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        self.x0, self.x1 = x_range if x_range[1] > x_range[0] else (x_range[0] - 1, x_range[0] + 1)
        self.y0, self.y1 = low - margin if low else low, high + margin

    def x(self, x: np.ndarray | float) -> Any:
        return LEFT + (WIDTH - LEFT - RIGHT) * (np.asarray(x, float) - self.x0) / (self.x1 - self.x0)

    def y(self, y: np.ndarray | float) -> Any:
        y = np.log10(np.maximum(y, 1e-300)) if self.log else np.asarray(y, float)
        share = ((y - self.y0) / (self.y1 - self.y0)).clip(-1, 2)
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)

    def points(self, x: np.ndarray, y: np.ndarray) -> str:
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(self.x(x), self.y(y), strict=True))

    def frame(self, x_unit: str) -> str:
        parts = []
        if self.log:
            decades = 10.0 ** np.arange(math.floor(self.y0), math.ceil(self.y1) + 1)
            y_ticks = np.array([m * d for d in decades for m in ((1, 2, 5) if self.y1 - self.y0 < 2 else (1,))])
            y_ticks = y_ticks[(np.log10(y_ticks) >= self.y0) & (np.log10(y_ticks) <= self.y1)]
            y_ticks = y_ticks[:: -(-len(y_ticks) // 6)]
        else:
            y_ticks = pictures.ticks(self.y0, self.y1, 6)
        for value in y_ticks:
            at = float(self.y(value))
            parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{tick(value)}</text>')
        for value in pictures.ticks(self.x0, self.x1, 6):
            at = float(self.x(value))
            anchor = "end" if at > WIDTH - 25 else "middle"
            label = tick(value) + (f" {x_unit}" if value == 0 and x_unit else "")
            parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{label}</text>')
        return "".join(parts)


def tick(value: float) -> str:
    """The label of a value at an axis."""
    value = 0.0 if abs(value) < 1e-12 else value
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}".replace("-", "−")
    return f"{value:.6g}".replace("-", "−")


def chart(
    title: str,
    lines: Mapping[str, Line],
    x_range: tuple[float, float],
    x_unit: str = "",
    mark: float = 0,
    smooth: bool = False,
) -> str:
    """A figure with its legend: lines by name over steps, or over what is measured in `x_unit`; a dotted line at x = `mark`.

    `smooth` averages crowded lines, what they were drawn in faint behind. Over steps the legend has the last values, and an
    axis of values far apart is logarithmic. The pointer or the arrow keys show the values anywhere.
    """
    finite = {name: line.finite() for name, line in lines.items()}
    finite = {name: (x, y) for name, (x, y) in finite.items() if len(x)}
    if not finite:
        return f'<figure class="chart"><figcaption>{escape(title)}</figcaption><p>No finite value.</p></figure>'
    edges = {name: [edge.finite() for edge in lines[name].band or ()] for name in finite}
    drawn_y = [y for name in finite for _, y in (finite[name], *edges[name]) if not lines[name].aside]
    axes = Axes(x_range, np.concatenate(drawn_y or [y for _, y in finite.values()]), log=False if x_unit else None)
    drawn, legend, hover = [axes.frame(x_unit)], [], []
    if axes.x0 < mark < axes.x1:
        drawn.append(f'<path class="mark" d="M{axes.x(mark):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
    smooth = smooth and sum(map(len, drawn_y)) > _SMOOTHED_ABOVE
    used = 0
    for name, (x, y) in finite.items():
        colour = lines[name].colour
        if not colour:
            colour, used = f"c{used % _OTHER_COLOURS}", used + 1
        dash = ";stroke-dasharray:4 2" if used > _OTHER_COLOURS else ""
        style = f'style="--c:var(--{colour}){dash}"'
        if edges[name] and all(len(edge) for edge, _ in edges[name]):
            low, high = (_thin(*edge) for edge in edges[name])
            ring = f"{axes.points(*low)} {axes.points(high[0][::-1], high[1][::-1])}"
            drawn.append(f'<polygon class="band" {style} points="{ring}"/>')
        thin = _thin(x, y)
        if lines[name].level:
            drawn.append(f'<path class="line dashed" {style} d="M{LEFT} {axes.y(y[-1]):.1f}H{WIDTH - RIGHT}"/>')
            thin = x[-1:], y[-1:]
        elif smooth:
            every = slice(None, None, -(-len(x) // _MOST_POINTS))
            drawn.append(f'<polyline class="raw" {style} points="{axes.points(*thin)}"/>')
            drawn.append(f'<polyline class="line" {style} points="{axes.points(x[every], _smooth(y)[every])}"/>')
        else:
            drawn.append(f'<polyline class="line" {style} points="{axes.points(*thin)}"/>')
            if len(x) <= 30:
                drawn += [
                    f'<circle {style} cx="{a:.1f}" cy="{b:.1f}" r="2"/>' for a, b in zip(axes.x(x), axes.y(y), strict=True)
                ]
        legend.append(f"<span {style}>{escape(name)} <b>{'' if x_unit else number(y[-1])}</b></span>")
        hover.append([[float(f"{v:.6g}") for v in values] for values in thin])
    data = {"x0": axes.x0, "x1": axes.x1, "unit": x_unit or "step", "lines": hover}
    last = ", ".join(f"{name} {number(float(y[-1]))}".strip() for name, (_, y) in finite.items())
    return (
        f'<figure class="chart" tabindex="0" data-chart="{escape(json.dumps(data, separators=(",", ":")))}">'
        f'<figcaption><span class="key">{escape(title)}</span><output></output>'
        f'<span class="legend">{"".join(legend)}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}: last {last}")}">'
        f"{''.join(drawn)}</svg></figure>"
    )


def grid(charts: Iterable[str]) -> str:
    """Figures in as many columns as fit."""
    return f'<div class="grid">{"".join(charts)}</div>'


def table(head_html: Iterable[str], rows_html: Iterable[Sequence[str]], label: str = "") -> str:
    """The first cell of a row is its head. A table with a label, for those who do not see, can be scrolled by keys."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head_html)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{c}</td>" for c in row[1:])}</tr>' for row in rows_html
    )
    region = f' tabindex="0" role="region" aria-label="{escape(label)}"' if label else ""
    return f'<div class="wide"{region}><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def details(title: str, content_html: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content_html}</details>"


def image(rgb: np.ndarray, alt: str) -> str:
    """Of `(H, W, 3)` uint8."""
    height, width, _ = rgb.shape
    return f'<img alt="{escape(alt)}" width="{width}" height="{height}" src="{data_uri("image/png", pictures.png(rgb))}">'


def facts(values: Iterable[tuple[str, str]]) -> str:
    pairs = "".join(f"<div><dt>{escape(title)}</dt><dd>{escape(value)}</dd></div>" for title, value in values)
    return f"<dl>{pairs}</dl>"


def clip(title_html: str, sounds: Mapping[str, str], sample_rate: int, first: str, content_html: str) -> str:
    """Versions of one recording that play at once, the one heard chosen by buttons and keys.

    Args:
        title_html: of the figure.
        sounds: by name, data URIs.
        sample_rate: Hz of the output; the page's first clip that is played decides.
        first: the name that is heard first; the first of all where there is none such.
        content_html: what stands below the players. Of it, an element with `data-panel` shows the version of that name
            over time: a click chooses it and goes there, and the one heard has the class "heard".
    """
    players = "".join(
        f'<label>{escape(name)} <audio controls preload="none" data-name="{escape(name)}" src="{sound}"></audio></label>'
        for name, sound in sounds.items()
    )
    return (
        f'<figure class="clip" data-rate="{sample_rate}" data-first="{escape(first)}"><figcaption>{title_html}</figcaption>'
        f'<div class="players" role="group" aria-label="Player">{players}</div>{content_html}</figure>'
    )


def document(
    title: str, header_html: str, sections_html: Mapping[str, str], footer: str, style: str = "", script: str = ""
) -> str:
    """The whole page: `sections_html` by heading, with links to them; `style` and `script` after those of all pages."""
    ids = {heading: re.sub(r"\W+", "-", heading.lower()) for heading in sections_html}
    links = "".join(f'<a href="#{ids[heading]}">{escape(heading)}</a>' for heading in sections_html)
    body = "".join(
        f'<section id="{ids[heading]}"><h2>{escape(heading)}</h2>{content}</section>'
        for heading, content in sections_html.items()
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; media-src data:;
 style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_STYLE}{style}</style>
</head>
<body>
<header>{header_html}</header>
<nav aria-label="Sections">{links}</nav>
<main>{body}</main>
<footer>Written by bwe {__version__} {escape(footer)}</footer>
<svg width="0" height="0"><clipPath id="plot">
<rect x="{LEFT}" y="0" width="{WIDTH - LEFT}" height="{HEIGHT - BOTTOM + 2}"/></clipPath></svg>
<script>const LEFT = {LEFT}, RIGHT = {RIGHT}, WIDTH = {WIDTH}, TOP = {TOP}, BASE = {HEIGHT - BOTTOM};{_SCRIPT}{script}</script>
</body>
</html>
"""


_STYLE = """
:root { --ground: #fbfbfa; --card: #fff; --text: #1c1f24; --soft: #646b76; --rule: #e3e5e8; --grid: #eceef0;
  --made: #2563c9; --judge: #d9660a; --true: #12875a; --given: #868d98;
  --c0: #8b4fc4; --c1: #0a8f96; --c2: #c8386f; --c3: #a47a0c; --c4: #5d6b1f; --c5: #8a5a44; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #101215; --card: #181b20; --text: #e4e7ec; --soft: #98a0ac; --rule: #2a2f37; --grid: #262a31;
    --made: #6aa5ff; --judge: #ff9d4d; --true: #45c48f; --given: #8b93a0;
    --c0: #c29af0; --c1: #45c8cf; --c2: #f57fa9; --c3: #dfb84a; --c4: #b3c468; --c5: #cf9f88; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 0 clamp(12px, 3vw, 36px) 40px; max-width: 1400px; background: var(--ground);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
header { padding-top: 28px; }
h1 { margin: 0; font-size: 28px; font-weight: 650; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { margin: 40px 0 12px; font-size: 19px; font-weight: 650; }
h3 { margin: 22px 0 8px; font-size: 14px; font-weight: 600; color: var(--soft); }
p { max-width: 75ch; margin: 8px 0; }
header p, .clip + p, section > p { color: var(--soft); }
.state { font-size: 17px; color: var(--text) !important; }
dl { display: flex; flex-wrap: wrap; gap: 10px 32px; margin: 16px 0; }
dt { font-size: 12px; color: var(--soft); }
dd { margin: 0; }
nav { position: sticky; top: 0; z-index: 1; display: flex; gap: 4px 18px; overflow-x: auto; padding: 10px 0;
  background: var(--ground); border-bottom: 1px solid var(--rule); white-space: nowrap; }
a { color: var(--made); text-decoration: none; }
a:hover { text-decoration: underline; }
section { scroll-margin-top: 44px; }
:focus-visible { outline: 2px solid var(--made); outline-offset: 2px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 14px; }
.grid + .grid { margin-top: 14px; }
figure { margin: 0; }
.chart, .clip, details { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 10px 12px 6px; }
.chart figcaption { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 12px; font-size: 12.5px; min-height: 38px;
  align-content: flex-start; }
.chart .key { font-weight: 600; }
.chart output { color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: 0 12px; margin-left: auto; color: var(--soft); }
.legend span::before { content: ""; display: inline-block; width: 9px; height: 3px; margin-right: 5px; vertical-align: 3px;
  border-radius: 1px; background: var(--c); }
.legend b { font-weight: 600; color: var(--text); }
svg { display: block; width: 100%; height: auto; touch-action: pan-y; }
svg text { font-size: 10.5px; fill: var(--soft); }
path.grid { stroke: var(--grid); }
svg path.line, polyline { fill: none; stroke: var(--c); stroke-width: 1.6; stroke-linejoin: round; clip-path: url(#plot); }
svg path.dashed { stroke-width: 1.4; stroke-dasharray: 5 4; }
.raw { stroke-width: 1; opacity: 0.3; }
.band { fill: var(--c); opacity: 0.15; clip-path: url(#plot); }
circle { fill: var(--c); }
.bar { fill: var(--made); }
svg path.mark { stroke: var(--soft); stroke-dasharray: 1.5 3; }
svg path.cursor { stroke: var(--soft); }
.wide { overflow-x: auto; }
.wide + .grid { margin-top: 18px; }
table { border-collapse: collapse; font-size: 14px; }
th, td { padding: 5px 22px 5px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; white-space: nowrap; }
thead th { font-size: 12.5px; color: var(--soft); }
.clip { margin: 12px 0; }
.clip figcaption { font-weight: 600; }
.players { display: flex; flex-wrap: wrap; align-items: center; gap: 8px; margin: 8px 0; }
.players label { display: grid; }
.clip img { display: block; height: auto; min-width: 760px; width: 100%; max-width: 1334px; border-radius: 4px; }
button { font: inherit; font-size: 14px; padding: 4px 14px; color: var(--text); background: var(--ground);
  border: 1px solid var(--rule); border-radius: 6px; cursor: pointer; }
button[aria-pressed=true] { color: var(--card); background: var(--made); border-color: var(--made); }
.players .play { min-width: 76px; }
.players input { flex: 1 1 140px; min-width: 120px; max-width: 420px; accent-color: var(--made); }
details { margin: 10px 0; padding: 10px 14px; }
summary { cursor: pointer; font-weight: 600; }
code, pre { font: 12.5px/1.5 ui-monospace, monospace; }
td code { white-space: pre-wrap; overflow-wrap: anywhere; }
pre { overflow-x: auto; }
footer { margin-top: 40px; font-size: 12.5px; color: var(--soft); }
"""

_SCRIPT = """
'use strict';
const number = v => Math.abs(v) >= 1e4 && Math.abs(v) < 1e7 ? Math.round(v).toLocaleString('en') :
  String(+v.toPrecision(4)).replace('-', '\\u2212');
for (const chart of document.querySelectorAll('[data-chart]')) {
  const data = JSON.parse(chart.dataset.chart), svg = chart.querySelector('svg'), output = chart.querySelector('output');
  const values = [...chart.querySelectorAll('.legend b')], last = values.map(b => b.textContent);
  const steps = [...new Set(data.lines.flatMap(line => line[0]))].sort((a, b) => a - b);
  const cursor = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  cursor.setAttribute('class', 'cursor');
  const nearest = (list, x) => {
    let low = 0, high = list.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (list[middle] < x) low = middle; else high = middle; }
    return x - list[low] < list[high] - x ? low : high;
  };
  let at = steps.length - 1;
  const show = index => {
    at = Math.max(0, Math.min(steps.length - 1, index));
    const x = steps[at];
    data.lines.forEach((line, k) => { values[k].textContent = number(line[1][nearest(line[0], x)]); });
    output.textContent = data.unit === 'step' ? 'step ' + number(x) : number(x) + ' ' + data.unit;
    const left = LEFT + (WIDTH - LEFT - RIGHT) * (x - data.x0) / (data.x1 - data.x0);
    cursor.setAttribute('d', `M${left} ${TOP}V${BASE}`);
    svg.append(cursor);
  };
  const hide = () => { cursor.remove(); output.textContent = ''; values.forEach((b, k) => { b.textContent = last[k]; }); };
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * WIDTH;
    const share = (x - LEFT) / (WIDTH - LEFT - RIGHT);
    show(nearest(steps, data.x0 + share * (data.x1 - data.x0)));
  });
  svg.addEventListener('pointerleave', hide);
  chart.addEventListener('blur', hide);
  chart.addEventListener('keydown', event => {
    const by = {ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -1e9, End: 1e9}[event.key];
    if (by) { event.preventDefault(); show(at + by); }
  });
}

let context, turn = 0, silence = () => {};
for (const clip of document.querySelectorAll('.clip')) {
  const players = clip.querySelector('.players'), audios = [...players.querySelectorAll('audio')];
  const names = audios.map(audio => audio.dataset.name);
  const add = (name, properties) => Object.assign(document.createElement(name), properties);
  const play = add('button', {className: 'play', textContent: 'Play'});
  const choices = names.map(name => add('button', {textContent: name}));
  const seek = add('input', {type: 'range', min: 0, max: 1, step: 'any', value: 0, ariaLabel: 'Position'});
  let buffers, sources = [], gains = [], chosen = Math.max(0, names.indexOf(clip.dataset.first)), began = 0, at = 0;
  const panels = [...clip.querySelectorAll('[data-panel]')];
  const length = () => buffers[0].duration;
  const position = () => sources.length ? Math.max(0, context.currentTime - began) % length() / length() : at;
  const show = share => { seek.value = share; clip.style.setProperty('--at', share); };
  const choose = index => {
    chosen = index;
    choices.forEach((button, k) => button.setAttribute('aria-pressed', k === index));
    panels.forEach(panel => panel.classList.toggle('heard', panel.dataset.panel === names[index]));
    gains.forEach((gain, k) => gain.gain.setTargetAtTime(k === index ? 1 : 0, context.currentTime, 0.003));
  };
  const stop = () => {
    at = position();
    sources.forEach(source => source.stop());
    sources = []; gains = []; play.textContent = 'Play';
  };
  const load = async audio => {
    const text = atob(audio.src.slice(audio.src.indexOf(',') + 1));
    return context.decodeAudioData(Uint8Array.from(text, c => c.charCodeAt(0)).buffer);
  };
  const start = async () => {
    const mine = ++turn;
    silence();
    silence = stop;
    context ??= new AudioContext({sampleRate: +clip.dataset.rate});
    await context.resume();
    if (!buffers) {
      const decoded = await Promise.all(audios.map(load)), frames = Math.max(...decoded.map(buffer => buffer.length));
      buffers = decoded.map(buffer => {
        const padded = context.createBuffer(buffer.numberOfChannels, frames, context.sampleRate);
        for (let c = 0; c < buffer.numberOfChannels; c++) padded.copyToChannel(buffer.getChannelData(c), c);
        return padded;
      });
    }
    if (mine !== turn) return;  // another clip was started while this one was decoded
    const offset = at * length();
    began = context.currentTime + 0.05 - offset;
    gains = buffers.map((_, k) => new GainNode(context, {gain: k === chosen ? 1 : 0}));
    sources = buffers.map((buffer, k) => {
      const source = new AudioBufferSourceNode(context, {buffer, loop: true});
      source.connect(gains[k]).connect(context.destination);
      source.start(began + offset, offset);
      return source;
    });
    play.textContent = 'Pause';
    const follow = () => { if (sources.length) { show(position()); requestAnimationFrame(follow); } };
    follow();
  };
  const fail = () => { players.replaceChildren(...audios.map(audio => add('label', {textContent: audio.dataset.name})));
    audios.forEach((audio, k) => players.children[k].append(audio)); };
  play.onclick = () => sources.length ? stop() : start().catch(fail);
  const go = share => {
    const playing = sources.length > 0;
    if (playing) stop();
    show(at = share);
    if (playing) start().catch(fail);
  };
  seek.oninput = () => go(+seek.value);
  panels.forEach(panel => panel.addEventListener('click', event => {
    const box = panel.getBoundingClientRect();
    choose(names.indexOf(panel.dataset.panel));
    go(Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)));
  }));
  choices.forEach((button, k) => { button.onclick = () => choose(k); });
  clip.addEventListener('keydown', event => { if (choices[event.key - 1]) choose(event.key - 1); });
  players.replaceChildren(play, ...choices, seek);
  choose(chosen);
}
"""
