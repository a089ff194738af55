"""HTML of what ``inside`` measured: for each picture the attention, and the words of v and v̂, over its patches."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from html import escape

from PIL import Image

from basic_lite.tools.chat.inside import Inside

# Up to so many patches in a row a word has room in its patch; beyond, it is read below the pointer.
MOST_WITH_WORDS = 10
MOST_LISTED = 8
# Colours of the most frequent words, apart from one another for most colour-blind people too (Okabe and Ito).
_COLOURS = ("230,159,0", "86,180,233", "0,158,115", "240,228,66", "0,114,178", "213,94,0", "204,121,167")
_SIDE_PIXELS = 336

STYLE = """
.inside { display: flex; flex-wrap: wrap; gap: 1rem 1.25rem; margin: .5rem 0 1.25rem; }
.inside figure { flex: 1 1 250px; max-width: 440px; margin: 0; }
.inside figcaption { font-size: .85rem; line-height: 1.4; margin-top: .4rem; }
.inside .key { display: inline-block; white-space: nowrap; margin-right: .8em; }
.inside .key i { display: inline-block; width: .75em; height: .75em; border-radius: 2px; margin-right: .3em; }
.inside .patches { position: relative; display: grid; aspect-ratio: 1; container-type: inline-size; user-select: none; }
.inside .patches > img { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; }
.inside .patches.grey > img { filter: grayscale(1) brightness(.75); }
.inside .patches > b { position: relative; display: grid; place-items: center; min-width: 0; min-height: 0;
  font: 600 var(--size, 0) / 1 system-ui, sans-serif; color: #fff; text-shadow: 0 0 3px #000, 0 0 2px #000;
  outline: 1px solid rgba(255, 255, 255, .15); outline-offset: -1px; cursor: default; }
.inside .patches > b:is(:hover, :focus) { outline: 2px solid #fff; z-index: 2; }
.inside .patches > b:is(:hover, :focus)::after { content: attr(data-tip); position: absolute; z-index: 3;
  bottom: calc(100% + 4px); left: var(--tip-left, 50%); transform: translateX(var(--tip-shift, -50%));
  padding: .35em .6em; border-radius: 4px; background: #111; color: #fff; font: 500 .8rem / 1.2 system-ui, sans-serif;
  white-space: nowrap; text-shadow: none; pointer-events: none; }
"""


def panels(found: Sequence[Inside], layers: int) -> str:
    """The panels of all pictures, newest first and alone unfolded.

    Args:
        layers: K, the layers that make v̂ and whose attention is shown.
    """
    strongest = max((a for one in found for a in one.attention), default=0.0)
    shown = [_picture(one, layers, strongest) for one in found]
    if len(shown) > 1:
        last = len(shown)
        shown = [_folded(f"picture {n}", html, unfolded=n == last) for n, html in enumerate(shown, start=1)]
    return f"<style>{STYLE}</style>" + "".join(reversed(shown))


def _folded(title: str, html: str, *, unfolded: bool) -> str:
    return f"<details{' open' if unfolded else ''}><summary>{title}</summary>{html}</details>"


def _picture(one: Inside, layers: int, strongest: float) -> str:
    common = Counter([*one.words, *one.target_words]).most_common(len(_COLOURS))
    # A word that is read needs no colour, and `red` in blue misleads.
    words_fit = one.side <= MOST_WITH_WORDS
    colours = {} if words_fit else {word: rgb for (word, _), rgb in zip(common, _COLOURS, strict=False)}
    figures = [
        _attention(one, layers, strongest),
        _words(one, one.words, colours, "Nearest words of v", "what the projector gives the LLM"),
        _words(one, one.target_words, colours, "Nearest words of v̂", f"what layers 1 to {layers} have made of it"),
    ]
    return f'<div class="inside">{"".join(figures)}</div>'


def _attention(one: Inside, layers: int, strongest: float) -> str:
    """The heat has one scale for all pictures, on which ``strongest`` is the hottest."""
    mass, hottest = one.mass or 1.0, strongest or 1.0
    cells = [
        _cell(one, n, f"rgba(255,90,0,{0.85 * a / hottest:.2f})", f"{a / mass:.1%} (a = {a:.4f})")
        for n, a in enumerate(one.attention)
    ]
    caption = (
        f"<strong>Attention a</strong>: what the answer’s words pay to each patch, mean over layers 1 to {layers}. "
        f"The whole picture has {one.mass:.0%} of their attention; the strongest patch has "
        f"{max(one.attention) / mass:.0%} of that."
    )
    return _figure(one, cells, caption, grey=True)


def _words(one: Inside, words: Sequence[str], colours: dict[str, str], title: str, meaning: str) -> str:
    counted = Counter(words).most_common()
    cells = []
    for n, word in enumerate(words):
        colour = f"rgba({colours[word]},.55)" if word in colours else f"rgba(0,0,0,{0.45 if colours else 0.35})"
        cells.append(_cell(one, n, colour, word, "" if colours else word))
    keys = [_key(f"{word} × {count}", colours.get(word)) for word, count in counted[:MOST_LISTED]]
    if rest := len(counted) - MOST_LISTED:
        keys += [_key(f"and {rest} other{'s' * (rest != 1)}", None)] if rest > 0 else []
    return _figure(one, cells, f"<strong>{title}</strong>: {meaning}.<br>{''.join(keys)}", grey=False)


def _key(text: str, colour: str | None) -> str:
    chip = f'<i style="background:rgb({colour})"></i>' if colour else ""
    return f'<span class="key">{chip}{escape(text)}</span>'


def _cell(one: Inside, n: int, colour: str, tip: str, text: str = "") -> str:
    column = n % one.side
    # Near a border the tip opens to the inside.
    edge = ""
    if column < one.side / 4:
        edge = "--tip-left:0;--tip-shift:0;"
    elif column >= one.side * 3 / 4:
        edge = "--tip-left:100%;--tip-shift:-100%;"
    # A long word is written smaller: seven letters fill a patch.
    size = f"--size:{140 / max(len(text), 7) / one.side:.2f}cqw;" if text else ""
    return f'<b tabindex="-1" data-tip="{escape(tip)}" style="background:{colour};{edge}{size}">{escape(text)}</b>'


def _figure(one: Inside, cells: Sequence[str], caption: str, *, grey: bool) -> str:
    kind = "patches grey" if grey else "patches"
    grid = f"grid-template:repeat({one.side},1fr)/repeat({one.side},1fr)"
    image = f'<img alt="" src="{_data_url(one.picture)}">'
    return (
        f'<figure><div class="{kind}" style="{grid}">{image}{"".join(cells)}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.resize((_SIDE_PIXELS, _SIDE_PIXELS), Image.Resampling.BICUBIC).save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
