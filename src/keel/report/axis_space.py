"""Persona space: roles on the axis and on the first components, and how the axis fares over the layers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, combinations
from typing import Any

from keel.report.axis_pictures import Band, Curve, Frame, Picture, Spot, Table, link, picture
from keel.report.evaluation_charts import number_scale
from keel.report.folder import Row, RunFolder, column, part, rows
from keel.report.lines import Chart, Strip, dot
from keel.report.words import brief, clean, finite, joined, number, share, shares, times

__all__ = ["Ends", "Space", "components", "cube", "space", "tone"]

N_COMPONENTS, N_TONES, MOST_SHARES, N_ENDS, N_BINS, LEAST_PILE, FEW, N_NAMES = 3, 10, 40, 6, 48, 5, 40, 16
WITHIN = 0.95
"""Share of the roles whose projections lie inside the colours."""
RELIABLE = 0.9
ENOUGH = ("0.7", "0.8", "0.9", "0.95")
KINDS = {"fully": "fully in role", "somewhat": "somewhat in role", "all": "every response", "default": "default"}
OPEN = ("somewhat",)
"""Kinds whose points are open."""


@dataclass(frozen=True)
class Ends:
    """A picture with the names at both of its ends."""

    picture: Picture
    low: str
    high: str


@dataclass(frozen=True)
class Space:
    """What is drawn of space.json; what is not known is none or empty. `reach`: where the colours end."""

    at: str
    says: tuple[str, ...]
    variance: Picture | None
    cosines: tuple[Ends, ...]
    traits: Ends | None
    flats: tuple[Picture, ...]
    layers: tuple[Picture, ...]
    table: Chart | None
    file: str
    reach: str
    kinds: tuple[tuple[str, str], ...]
    has_cube: bool


@dataclass(frozen=True)
class _Vector:
    """One role vector, or the default one."""

    name: str
    kind: str
    n: float | None
    projection: float
    coordinates: tuple[float, ...]
    cosines: tuple[float, ...]

    @property
    def said(self) -> str:
        kind = f" ({KINDS[self.kind]})" if self.kind in OPEN else ""
        return f"{self.name}{kind}"


def space(run: RunFolder, at: int) -> Space | None:
    """The persona space of a run; none where it has no space.json."""
    told = part(run.axis, "space")
    if not told:
        return None
    vectors = _vectors(told)
    reach = _reach(vectors)
    kinds = tuple((f"dot {_dress(kind)}", words) for kind, words in KINDS.items() if kind in {v.kind for v in vectors})
    return Space(f"space-{at}", tuple(_says(told, vectors)), _variance(told), tuple(_cosines(vectors)), _traits(told),
                 tuple(_flats(vectors, reach)), tuple(_layers(told)), _table(vectors), link(_numbers(vectors)),
                 brief(reach), kinds, _solid(vectors))


def cube(run: RunFolder, at: int) -> dict[str, Any] | None:
    """What the page's own script turns: places in the first three components, kinds and colours."""
    vectors = _vectors(part(run.axis, "space"))
    if not _solid(vectors):
        return None
    reach = _reach(vectors)
    return {"at": f"space-{at}", "names": [clean(v.name) for v in vectors],
            "kinds": [clean(KINDS.get(v.kind, v.kind)) for v in vectors], "dress": [_dress(v.kind) for v in vectors],
            "places": [[float(f"{x:.5g}") for x in v.coordinates] for v in vectors],
            "projections": [float(f"{v.projection:.5g}") for v in vectors],
            "tones": [tone(v.projection, reach) for v in vectors]}


def tone(projection: float, reach: float, middle: float = 0.0) -> int:
    """Colour of a projection: 0 far from the Assistant, 10 at its end, 5 in the middle."""
    half = N_TONES / 2
    return round(min(N_TONES, max(0.0, half + half * (projection - middle) / reach)))


def components(told: Row) -> str:
    """How many components hold how much of the variance, as words."""
    held = part(told, "components_for")
    found = [(share(float(key)), int(n)) for key in ENOUGH if (n := finite(held.get(key))) is not None]
    if not found:
        return ""
    first, rest = found[0], [f"{n:,} hold {much}" for much, n in found[1:]]
    return f"{times(first[1], 'component')} {'holds' if first[1] == 1 else 'hold'} " + joined(
        [f"{first[0]} of the variance", *rest]) + "."


def _vectors(told: Row) -> list[_Vector]:
    """The roles in the order of the file, and the default at the end."""
    default = part(told, "default")
    given = [*rows(told, "vectors"), *([{**default, "name": "default", "kind": "default"}] if default else [])]
    return [_Vector(str(row.get("name")), str(row.get("kind")), finite(row.get("n")), x,
                    tuple(column(row, "coordinates")[:N_COMPONENTS]), tuple(column(row, "cosines")[:N_COMPONENTS]))
            for row in given if (x := finite(row.get("projection"))) is not None]


def _solid(vectors: Sequence[_Vector]) -> bool:
    return len(vectors) > 1 and all(len(v.coordinates) == N_COMPONENTS for v in vectors)


def _reach(vectors: Sequence[_Vector]) -> float:
    sizes = sorted(abs(v.projection) for v in vectors if v.kind != "default")
    return (sizes[round(WITHIN * (len(sizes) - 1))] if sizes else 1.0) or 1.0


def _dress(kind: str) -> str:
    return "start" if kind in OPEN else "default" if kind == "default" else "whole"


def _says(told: Row, vectors: Sequence[_Vector]) -> list[str]:
    roles = [v for v in vectors if v.kind != "default"]
    default = next((v for v in vectors if v.kind == "default"), None)
    said = []
    if default and roles:
        n = sum(v.projection >= default.projection for v in roles)
        beyond = f"{n:,} lie" if n > 1 else "1 lies" if n else "none lies"
        ends = (min(roles, key=lambda v: v.projection), max(roles, key=lambda v: v.projection))
        said.append(f"On the axis the default lies at {brief(default.projection)} from the mean role; of "
                    f"{times(len(roles), 'role vector')} {beyond} as far to the Assistant's "
                    f"end. The roles run from {ends[0].said} ({brief(ends[0].projection)}) to "
                    f"{ends[1].said} ({brief(ends[1].projection)}).")
    scores = [row for row in part(told, "counts").values() if isinstance(row, dict)]
    counted = {key: int(sum(finite(row.get(key)) or 0 for row in scores)) for key in ("0", "1", "2", "3", "unscored")}
    if total := sum(counted.values()):
        fully, somewhat, unscored = shares([counted[key] / total for key in ("3", "2", "unscored")])
        lost = f"; {unscored} could not be scored" if counted["unscored"] else ""
        said.append(f"Of {times(total, 'response')} under a role {fully} play it fully (score 3) and {somewhat} "
                    f"somewhat (score 2){lost}.")
    halves, layer = _per_layer(told, "split_half"), finite(told.get("layer"))
    mine = halves[int(layer)] if layer is not None and 0 <= layer < len(halves) else None
    if mine is not None and mine < RELIABLE:
        said.append(f"The two halves of the questions give axes with a cosine of {brief(mine)}, below {RELIABLE}: "
                    "other questions would give another axis. Ask more questions, or more roles.")
    return said


def _variance(told: Row) -> Picture | None:
    shares = column(told, "variance")[:MOST_SHARES]
    if not shares:
        return None
    sums = list(accumulate(shares))
    curves = [Curve(name, kind, [Spot(k + 1, y, said=f"component {k + 1}: {share(y)} {name}")
                                 for k, y in enumerate(values)])
              for name, kind, values in (("of its own", "run-0", shares), ("with those before it", "run-1", sums))]
    frame = Frame("Variance explained", components(told), "component", "share of the variance", whole=True, share=True)
    table = Table("variance", ("component", "share", "cumulative"),
                  [(k + 1, a, b) for k, (a, b) in enumerate(zip(shares, sums, strict=True))])
    return picture(frame, curves, table)


def _cosines(vectors: Sequence[_Vector]) -> list[Ends]:
    found = []
    for k in range(N_COMPONENTS):
        mine = [v for v in vectors if len(v.cosines) > k]
        values = [(v.cosines[k], v.said, v.kind) for v in mine]
        if any(kind != "default" for *_, kind in values):
            words = "Each point is a role vector, less the mean role; the dashed line is the default."
            frame = Frame(f"Cosine with component {k + 1}", words, f"cosine with component {k + 1}", "role vectors",
                          span_x=(-1.0, 1.0))
            table = Table(f"cosines_pc{k + 1}", ("name", "kind", f"cosine_pc{k + 1}"),
                          [(v.name, v.kind, v.cosines[k]) for v in mine])
            found.append(_piled(frame, values, table))
    return found


def _traits(told: Row) -> Ends | None:
    values = [(x, str(row.get("name")), "trait") for row in rows(told, "traits")
              if (x := finite(row.get("cosine"))) is not None]
    if not values:
        return None
    words = "Each point is a trait vector; right: traits of the Assistant."
    frame = Frame("Traits on the axis", words, "cosine with the axis", "traits", span_x=(-1.0, 1.0))
    return _piled(frame, values, Table("traits", ("name", "cosine"), [(name, x) for x, name, _ in values]))


def _piled(frame: Frame, values: Sequence[tuple[float, str, str]], table: Table) -> Ends:
    """Points over their values, one on another where they would hide each other."""
    piles: dict[int, int] = {}
    curves: dict[str, list[Spot]] = {}
    for x, name, kind in sorted(v for v in values if v[2] != "default"):
        at = round(x * N_BINS / 2)
        piles[at] = piles.get(at, 0) + 1
        curves.setdefault(kind, []).append(Spot(x, piles[at], said=f"{name} {number(x, 2)}"))
    default = next((x for x, _, kind in values if kind == "default"), None)
    top = max(LEAST_PILE, *piles.values())
    drawn = [Curve(KINDS.get(kind, kind), f"run-0 {_dress(kind)}", spots, joined=False)
             for kind, spots in curves.items()]
    bands = []
    if default is not None:
        mark = Spot(default, 1.15 * top, said=f"default {number(default, 2)}", label="default")
        drawn.append(Curve("default", "run-1 default", [mark], joined=False))
        bands.append(Band(default, default, "default", upright=True))
    placed = replace(frame, span_y=(0.0, float(top)))
    named = [f"{name} {number(x, 2)}" for x, name, kind in sorted(values) if kind != "default"]
    n = min(N_ENDS, (len(named) + 1) // 2)
    return Ends(picture(placed, drawn, table, bands), ", ".join(named[:n]), ", ".join(reversed(named[n:][-N_ENDS:])))


def _flats(vectors: Sequence[_Vector], reach: float) -> list[Picture]:
    """The space from its three sides."""
    if not _solid(vectors):
        return []
    found = []
    for a, b in combinations(range(N_COMPONENTS), 2):
        far = sorted(vectors, key=lambda v: (v.kind != "default",
                                             -(v.coordinates[a] ** 2 + v.coordinates[b] ** 2)))
        spots = [Spot(v.coordinates[a], v.coordinates[b], said=f"{v.said}: projection {brief(v.projection)}",
                      label=v.name if len(far) <= FEW or i < N_NAMES else "",
                      kind=f"tone-{tone(v.projection, reach)} {_dress(v.kind)}") for i, v in enumerate(far)]
        frame = Frame(f"Components {a + 1} and {b + 1}", "Names as far as there is room; the rest on hover.",
                      f"component {a + 1}", f"component {b + 1}", tall=True)
        table = Table(f"plane_pc{a + 1}_pc{b + 1}", ("name", "kind", f"pc{a + 1}", f"pc{b + 1}", "projection"),
                      [(v.name, v.kind, v.coordinates[a], v.coordinates[b], v.projection) for v in vectors])
        found.append(picture(frame, [Curve("roles", "tone-5", spots, joined=False)], table))
    return found


def _layers(told: Row) -> list[Picture]:
    layer = finite(told.get("layer"))
    words = "The dashed line is the layer that the rest of the page is about."
    found = []
    for key, title, y, span in (("cosine_pc1", "Axis and first component", "cosine", (0.0, 1.0)),
                                ("axis_norm", "Length of the axis", "length", (0.0,)),
                                ("split_half", "Axis from either half of the questions", "cosine", (0.0, 1.0))):
        values = _per_layer(told, key)
        spots = [Spot(k, x, said=f"layer {k}: {number(x)}") for k, x in enumerate(values) if x is not None]
        if spots:
            bands = [] if layer is None else [Band(layer, layer, "", upright=True)]
            table = Table(key, ("layer", key), list(enumerate(values)))
            frame = Frame(title, words if layer is not None else "", "layer", y, whole=True, span_y=span)
            found.append(picture(frame, [Curve(title, "run-0", spots)], table, bands))
    return found


def _per_layer(told: Row, key: str) -> list[float | None]:
    found = told.get(key)
    return [finite(x) for x in found] if isinstance(found, list) else []


def _table(vectors: Sequence[_Vector]) -> Chart | None:
    """Every role on one track, the Assistant's end first."""
    if not vectors:
        return None
    ticks, place = number_scale(v.projection for v in vectors)
    strips = []
    for v in sorted(vectors, key=lambda v: -v.projection):
        color = 1 if v.kind == "default" else 0
        cosines = [number(x, 2) for x in v.cosines] + [number(None)] * (N_COMPONENTS - len(v.cosines))
        strips.append(Strip(v.name, KINDS[v.kind] if v.kind in OPEN else "",
                            "whole" if v.kind == "default" else "",
                            (dot({"mean": v.projection}, color, place, 0.0, few=v.kind in OPEN),),
                            (number(v.projection), *cosines, number(v.n))))
    heads = ("projection", *(f"cosine {k + 1}" for k in range(N_COMPONENTS)), "responses")
    return Chart(f"All {times(len(vectors), 'vector')}", "", ticks, heads, tuple(strips))


def _numbers(vectors: Sequence[_Vector]) -> Table:
    head = ("name", "kind", "n", "projection", *(f"{what}{k + 1}" for what in ("pc", "cosine_pc")
                                                 for k in range(N_COMPONENTS)))
    gap: list[None] = [None] * N_COMPONENTS
    return Table("vectors", head, [(v.name, v.kind, v.n, v.projection, *[*v.coordinates, *gap][:N_COMPONENTS],
                                  *[*v.cosines, *gap][:N_COMPONENTS]) for v in vectors])
