"""HTML of token maps: for each picture the attention and the nearest words over its patches, and the trace."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

from basic_lite.sizes import number_of
from basic_lite.supervision.picture_maps import PictureMaps
from basic_lite.tools.report.charts import Chart, Line

# Up to so many patches in a row a word has room in its patch; beyond, it is read below the pointer.
MOST_WITH_WORDS = 10
MOST_LISTED = 8
# Colours of the most frequent words, apart from one another for most colour-blind people too (Okabe and Ito).
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
HEAT, SINK = (255, 90, 0), (0, 229, 255)
# How much of the picture the hottest patch hides, a coloured word, and a word without a colour.
HOTTEST, COLOURED, PLAIN = 0.85, 0.55, 0.4
# Below the heat the picture is grey, so bright. A sink's ring is so far from its patch's border.
GREY, RING = 0.75, 0.12

# What a map is called, what it shows, what is good, what is bad.
_READING = (
    (
        "Attention a",
        "Where the text looks. The brighter a patch, the more of the text’s attention it gets.",
        "bright patches lie on what the text is about",
        "one bright patch beside everything; or the whole picture gets next to nothing",
    ),
    (
        "Nearest words of v",
        "The projector makes one vector v of each patch. The map names the word whose own vector points most like it.",
        "words for what is in the patch; a white frame marks words that stand in the text, small words such as “there” "
        "too",
        "one word everywhere, or pieces of words that say nothing; a new projector begins there",
    ),
    (
        "Nearest words after a layer",
        "The same for ṽ, what the LLM’s layers make of v on its way.",
        "more words name the picture, layer by layer",
        "words of the picture are lost again",
    ),
    (
        "Nearest words of v̂",
        "v̂ is the weighted mean of the first layers. BASIC pulls v towards it.",
        "v̂ names the picture better than v does",
        "v names it better: then BASIC pulls v the wrong way",
    ),
    (
        "Sink (ring)",
        "A patch whose vector is over four times as long as the middle one’s. It draws attention, and says nothing of "
        "its place.",
        "none or a few, as in most LLMs",
        "many: supervision.sinks=drop leaves them out of BASIC",
    ),
    (
        "How far the layers turn v",
        "cos(v, ṽ_h) is 1 where layer h has left v’s direction as it was, and 0 where nothing is left of it.",
        "it falls step by step",
        "it stays at 1, so BASIC has nothing to teach; or it is 0 at once, as with a giant dimension",
    ),
)

STYLE = (
    """
.maps { display: flex; flex-wrap: wrap; gap: 1rem 1.25rem; margin: .5rem 0 1.25rem; }
.maps figure { flex: 1 1 15rem; max-width: 27rem; margin: 0; min-width: 0; break-inside: avoid; }
.maps figcaption { font-size: .85rem; line-height: 1.4; margin-top: .4rem; }
.maps .word { display: inline-block; margin-right: .8em; overflow-wrap: anywhere; }
.maps .word i { display: inline-block; width: .75em; height: .75em; border-radius: 2px; margin-right: .3em; }
.maps .patches { position: relative; display: grid; container-type: inline-size; user-select: none; }
.maps .patches, .maps .patches *, .maps .word i { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.maps .patches::before { content: ""; position: absolute; inset: 0;
  background: var(--picture) center / 100% 100% no-repeat; }
.maps .patches.grey::before { filter: grayscale(1) brightness(GREY); }
.maps .patches > b { position: relative; display: grid; place-items: center; min-width: 0; min-height: 0;
  font: 600 calc(140cqw / var(--letters, 7) / var(--columns)) / 1 system-ui, sans-serif; color: #fff;
  text-shadow: 0 0 3px #000, 0 0 2px #000; outline: 1px solid rgba(255, 255, 255, .15); outline-offset: -1px;
  background: rgba(0, 0, 0, PLAIN); cursor: default; overflow-wrap: normal; white-space: nowrap; }
.maps .patches > .t { --frame: min(2px, 8cqw / var(--columns));
  outline: var(--frame) solid rgba(255, 255, 255, .95); outline-offset: calc(-1 * var(--frame)); }
.maps .patches > .s::before { content: ""; position: absolute; inset: RING; border-radius: 50%;
  border: max(2px, 1cqw) solid SINK; }
.maps .patches > b:is(:hover, :focus) { outline: 2px solid #fff; z-index: 2; }
.maps .patches > b:is(:hover, :focus)::after { content: attr(data-tip); position: absolute; z-index: 3;
  bottom: calc(100% + 4px); left: 50%; transform: translateX(-50%); padding: .35em .6em; border-radius: 4px;
  background: #111; color: #fff; font: 500 .8rem / 1.2 system-ui, sans-serif; white-space: nowrap; text-shadow: none;
  pointer-events: none; }
.maps .patches > .l:is(:hover, :focus)::after { left: 0; transform: none; }
.maps .patches > .r:is(:hover, :focus)::after { left: 100%; transform: translateX(-100%); }
@media print { h2, h3, h2 + p, h3 + p { break-after: avoid; } }
.trace-of-all { max-width: 31rem; }
.reading { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: .7rem; }
.reading > div { background: var(--card); border-radius: .5rem; padding: .6rem .8rem; font-size: .9rem; }
.reading dt { font-weight: 600; } .reading dd { margin: .2rem 0 0; }
.maps .trace text { fill: currentColor; font-size: 12px; } .maps .trace .grid { stroke: currentColor; opacity: .2; }
.maps .trace .line { stroke: currentColor; } .maps .trace .dot { fill: currentColor; }
""".replace("SINK", f"rgb{SINK}")
    .replace("GREY", str(GREY))
    .replace("RING", f"{RING:.0%}")
    .replace("PLAIN", str(PLAIN))
    + "".join(
        f".maps .patches > .k{n} {{ background: rgba{(*colour, COLOURED)}; }}\n" for n, colour in enumerate(COLOURS)
    )
)


def panels(found: Sequence[PictureMaps]) -> str:
    """The panels of a conversation's pictures, newest first and alone unfolded, with their style."""
    shown = [picture_panels(one, strongest_of(found)) for one in found]
    if len(shown) > 1:
        last = len(shown)
        shown = [
            f"<details{' open' * (n == last)}><summary>picture {n}</summary>{html}</details>"
            for n, html in enumerate(shown, start=1)
        ]
    return f"<style>{STYLE}</style>" + "".join(reversed(shown))


def strongest_of(found: Sequence[PictureMaps]) -> float:
    """The largest a_i that no sink has, so that several pictures can have one scale of heat, and a sink hides none."""
    values = [(n in sinks, a) for one in found for sinks in [set(one.sinks)] for n, a in enumerate(one.attention or [])]
    return max((a for is_sink, a in values if not is_sink), default=max((a for _, a in values), default=0.0))


def picture_panels(one: PictureMaps, strongest: float, *, trace: bool = True) -> str:
    """The panels of one picture; what is known without a grid where it has none.

    Args:
        strongest: what has the hottest colour.
        trace: with the chart of cos(v, ṽ_h).
    """
    colours = {} if words_fit(one) else colours_of(one)
    figures = [_words(one, place, colours) for place in range(len(one.places))]
    if one.rows:
        figures = [_plain(one), _attention(one, strongest), *figures]
    if trace:
        figures.append(
            f'<figure class="trace">{trace_chart([one]).svg()}<figcaption>{_trace_text(one)}</figcaption></figure>'
        )
    style = f' style="--picture:url({one.picture})"' if one.rows else ""
    return f'<div class="maps"{style}>{"".join(figures)}</div>'


def words_fit(one: PictureMaps) -> bool:
    """Whether words are read in their patches. Then they need no colour, and `red` in blue would mislead."""
    return 0 < one.columns <= MOST_WITH_WORDS


def colours_of(one: PictureMaps) -> dict[str, int]:
    """The numbers of the most frequent words' colours, the same ones at all places."""
    common = Counter(word for words in one.words for word in words).most_common(len(COLOURS))
    return {word: n for n, (word, _) in enumerate(common)}


def listed(one: PictureMaps, place: int) -> tuple[list[tuple[str, int]], str]:
    """The most frequent words of a place, with how many tokens they name, and how many others there are, in words."""
    words = Counter(one.words[place]).most_common()
    rest = len(words) - MOST_LISTED
    return words[:MOST_LISTED], f"and {number_of(rest, 'other')}" if rest > 0 else ""


def title_of(one: PictureMaps, place: int) -> tuple[str, str]:
    """What a map of words shows, and what that is."""
    name = one.places[place]
    if name == "v":
        return "Nearest words of v", "what the projector gives the LLM"
    if name == "target":
        return "Nearest words of v̂", f"what layers 1 to {one.layers} have made of it, BASIC’s target"
    return f"Nearest words after layer {name.removeprefix('h')}", f"ṽ{name.removeprefix('h')}, what this layer gives"


def attention_text(one: PictureMaps) -> str:
    """The attention in numbers."""
    if one.attention is None:
        return "The attention of this LLM’s layers can’t be read: it is no plain softmax."
    mass = one.mass or 1.0
    over = f"mean over layers 1 to {one.layers}"
    if one.attended < one.layers:
        over = f"mean over the {one.attended} of layers 1 to {one.layers} whose attention is a softmax"
    whole, count = "This part" if one.part else "The picture", len(one.sinks)
    sinks = f" {number_of(count, 'sink')} (ring), left out of the colours’ scale." if count else ""
    return (
        f"How much {one.whose} looks at each patch, {over}. {whole} gets {one.mass:.0%} of its attention; the "
        f"strongest patch has {max(one.attention) / mass:.0%} of that.{sinks}"
    )


def _plain(one: PictureMaps) -> str:
    part = f", {escape(one.part)}" if one.part else ""
    text = f"<strong>The picture{part}</strong>, as the vision tower gets it: {one.rows} × {one.columns} patches."
    return _figure(one, [], text, "The picture")


def _attention(one: PictureMaps, strongest: float) -> str:
    text = f"<strong>Attention a</strong>: {escape(attention_text(one))}"
    if one.attention is None:
        return f"<figure><figcaption>{text}</figcaption></figure>"
    mass, heats = one.mass or 1.0, heat_of(one, strongest)
    sinks = set(one.sinks)
    cells = []
    for n, (a, heat) in enumerate(zip(one.attention, heats, strict=True)):
        tip = f"{a / mass:.1%} (a = {a:.4f})" + ", sink" * (n in sinks)
        cells.append(_cell(one, n, tip, "s" if n in sinks else "", style=f"background:rgba{(*HEAT, round(heat, 2))}"))
    return _figure(one, cells, text, "Attention", grey=True)


def heat_of(one: PictureMaps, strongest: float) -> list[float]:
    """How opaque each patch's colour is."""
    return [HOTTEST * min(1.0, a / (strongest or 1.0)) for a in one.attention or []]


def _words(one: PictureMaps, place: int, colours: Mapping[str, int]) -> str:
    title, meaning = title_of(one, place)
    says = f"<strong>{escape(title)}</strong>: {escape(meaning)}. {in_text_text(one, place)}"
    text = f"{says}<br>{_legend(one, place, colours)}"
    if not one.rows:
        return f"<figure><figcaption>{text}</figcaption></figure>"
    fits, own, sinks = words_fit(one), set(one.in_text[place]), set(one.sinks)
    cells = []
    for n, word in enumerate(one.words[place]):
        kinds = [f"k{colours[word]}"] if word in colours else []
        kinds += ["t"] if n in own else []
        kinds += ["s"] if n in sinks else []
        tip = word + " (in the text)" * (n in own) + ", sink" * (n in sinks)
        letters = f"--letters:{len(word)}" if fits and len(word) > 7 else ""
        cells.append(_cell(one, n, tip, " ".join(kinds), word if fits else "", letters))
    return _figure(one, cells, text, title)


def in_text_text(one: PictureMaps, place: int) -> str:
    """How many words stand in the text."""
    return (
        f"{len(one.in_text[place])} of {one.tokens} patches have a word of the text{' (white frame)' * bool(one.rows)}."
    )


def _legend(one: PictureMaps, place: int, colours: Mapping[str, int]) -> str:
    words, rest = listed(one, place)
    keys = [_key(f"{word} × {count}", colours.get(word)) for word, count in words]
    return "".join([*keys, *([_key(rest, None)] if rest else [])])


def _key(text: str, colour: int | None) -> str:
    chip = f'<i style="background:rgb{COLOURS[colour]}"></i>' if colour is not None else ""
    return f'<span class="word">{chip}{escape(text)}</span>'


def _cell(one: PictureMaps, n: int, tip: str, kinds: str = "", text: str = "", style: str = "") -> str:
    column = n % one.columns
    # Near a border the tip opens to the inside.
    edge = "l" if column < one.columns / 4 else "r" if column >= one.columns * 3 / 4 else ""
    named = " ".join(filter(None, (kinds, edge)))
    shape = (f' class="{named}"' if named else "") + (f' style="{style}"' if style else "")
    return f'<b tabindex="-1" data-tip="{escape(tip)}"{shape}>{escape(text)}</b>'


def _figure(one: PictureMaps, cells: Sequence[str], caption: str, says: str, *, grey: bool = False) -> str:
    kind = "patches grey" if grey else "patches"
    label = escape(f"{says} over {one.name}{f', {one.part}' if one.part else ''}")
    grid = f"--columns:{one.columns};grid-template:repeat({one.rows},1fr)/repeat({one.columns},1fr);"
    grid += f"aspect-ratio:{one.columns}/{one.rows}"
    role = "group" if cells else "img"
    return (
        f'<figure><div class="{kind}" role="{role}" aria-label="{label}" style="{grid}">{"".join(cells)}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def trace_chart(found: Sequence[PictureMaps]) -> Chart:
    """cos(v, ṽ_h) after each layer and at v̂; with what eight of ten tokens lie between where there is one picture."""
    lines = []
    for one in found:
        points = [(n, mean) for n, (mean, _, _) in enumerate(one.trace)]
        bars = [(low, high) for _, low, high in one.trace] if len(found) == 1 else []
        lines.append(Line(" ".join(filter(None, (one.name, one.part))), points, bars, marks=True))
    names = [f"h{h}" for h in range(1, len(found[0].trace))] + ["v̂"]
    ends = "; ".join(
        f"{line.name}: {line.points[0][1]:.2f} after layer 1, {line.points[-1][1]:.2f} at v̂" for line in lines
    )
    return Chart(
        f"Cosine of v with what each layer makes of it. {ends}.", "after layer", "cos(v, ṽ)", lines, x_names=names
    )


def _trace_text(one: PictureMaps) -> str:
    least = min(range(len(one.trace) - 1), key=lambda n: one.trace[n][0])
    return (
        f"<strong>How far the layers turn v</strong>: cos(v, ṽ_h), the mean of all patches; the bar holds eight of "
        f"ten. Lowest after layer {least + 1}: {one.trace[least][0]:.2f}; at v̂ {one.trace[-1][0]:.2f}."
    )


def reading() -> str:
    """How to read the maps, as a list."""
    rows = [
        f"<div><dt>{name}</dt><dd>{what}</dd>"
        f'<dd><span class="good">✓ good:</span> {good}</dd><dd><span class="bad">✗ bad:</span> {bad}</dd></div>'
        for name, what, good, bad in _READING
    ]
    return f'<dl class="reading">{"".join(rows)}</dl>'
