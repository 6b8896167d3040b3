"""What the recipes of an axis leave in their run folders, made up by formula: enough to draw every picture."""

import math
from pathlib import Path
from typing import Any

from report_runs import environment, mean, result, wobble, write

Row = dict[str, Any]
NAMES = ("demon", "ghost", "oracle", "pirate", "poet", "spy", "hermit", "jester", "judge", "engineer", "teacher",
         "librarian", "accountant", "assistant", "consultant", "analyst", "reviewer", "wanderer", "smuggler", "bard")
DOMAINS = ("coding", "writing", "therapy", "philosophy about AI")


def space(n_roles: int = 20, n_layers: int = 8, **more: Any) -> Row:
    """space.json: roles along a line from -4 to 4, the default beyond its upper end."""
    vectors = []
    for i in range(n_roles):
        name = NAMES[i] if i < len(NAMES) else f"{NAMES[i % len(NAMES)]} {i // len(NAMES) + 1}"
        at = -4 + 8 * i / max(1, n_roles - 1)
        vectors += [vector(name, "fully", at + 0.3 * wobble(i), i, 40 + i)]
        vectors += [vector(name, "somewhat", 0.6 * at + 1.5, i + 500, 12)] if i % 2 else []
    variance = [0.49, 0.12, 0.08, 0.06, 0.05, 0.04, 0.03, 0.03, 0.02, 0.02]
    told = {
        "layer": n_layers // 2, "n_layers": n_layers,
        "cosine_pc1": [min(0.97, 0.5 + 0.1 * k) for k in range(n_layers)],
        "axis_norm": [0.5 * 1.4**k for k in range(n_layers)],
        "split_half": [0.9 + 0.01 * k for k in range(n_layers)],
        "token_norm": [4 * 1.3**k for k in range(n_layers)],
        "variance": variance, "components_for": {"0.7": 3, "0.8": 5, "0.9": 8, "0.95": 10}, "vectors": vectors,
        "default": {"n": 60, "projection": 4.6, "coordinates": [5.1, 0.4, -0.2], "cosines": [0.93, 0.05, -0.02]},
        "counts": {name: {"0": 3, "1": 7, "2": 20, "3": 68, "unscored": 2} for name in NAMES},
        "default_range": {"low": 1.5, "high": 4.5},
        "traits": [{"name": f"trait {i}", "cosine": 0.7 * math.sin(i)} for i in range(30)],
    }
    return told | more


def vector(name: str, kind: str, at: float, salt: int, n: int) -> Row:
    places = [at * 1.1, 1.4 * wobble(salt, 1), 1.1 * wobble(salt, 2)]
    length = math.dist(places, (0, 0, 0)) or 1.0
    return {"name": name, "kind": kind, "n": n, "projection": at, "coordinates": places,
            "cosines": [0.95 * x / length for x in places]}


def trajectories(n: int = 12, turns: int = 12, labels: tuple[str, ...] = ("as it was", "capped: middle")) -> list[Row]:
    """trajectories.jsonl: coding stays, the others fall; a cap holds them up."""
    rows = []
    for d, domain in enumerate(DOMAINS):
        for i in range(n):
            for label in labels:
                told = [{"turn": 2 * k, "role": "user", "projection": 0.5, "n_tokens": 9} for k in range(turns)]
                told += [{"turn": 2 * k + 1, "role": "assistant", "n_tokens": 40,
                          "projection": height(d, k, label) + 0.5 * wobble(i + 50 * d, k)} for k in range(turns)]
                rows.append({"id": f"{domain[:3]}-{i}", "group": domain, "label": label, "layer": 4, "turns": told})
    return rows


def height(domain: int, turn: int, label: str) -> float:
    fall = 3.2 - (0.02, 0.05, 0.22, 0.3)[domain] * turn
    return max(fall, 2.2) if label.startswith("capped") else fall


def drift(labels: tuple[str, ...] = ("as it was", "capped: middle"), turns: int = 12, **more: Any) -> Row:
    """drift.json of those conversations."""
    domains = []
    for d, domain in enumerate(DOMAINS):
        for label in labels:
            at = [{"turn": 2 * k + 1, **mean(height(d, k, label), 0.15, 12)} for k in range(turns)]
            slope = (at[-1]["mean"] - at[0]["mean"]) / (at[-1]["turn"] - at[0]["turn"])
            domains.append({"name": domain, "label": label, "slope": slope, "low": slope - 0.02, "high": slope + 0.02,
                            "n": 12, "positions": at})
    scores = {"out of fold": mean(0.41, 0.08), "shuffled control": mean(-0.02, 0.03), "domain label alone": 0.3,
              "on its own training data": 0.83}
    told = {"layer": 4, "centred": False, "default_range": {"low": 1.5, "high": 4.5}, "domains": domains,
            "prediction": {"projection": scores, "change": {name: 0.05 for name in scores}},
            "themes": [{"name": "asks for a feeling", "n": 40, "projection": 0.8, "low": 0.6, "high": 1.0,
                        "examples": ["how does it feel to be you?", "tell me what you fear"]},
                       {"name": "asks for a fix", "n": 60, "projection": 3.1, "low": 2.9, "high": 3.3,
                        "examples": ["fix this loop"]}]}
    return told | more


def heat(text: str = "") -> list[Row]:
    """heat.json: three texts whose tokens fall."""
    words = "I am glad you asked . As the night falls I become the voice behind the mirror , and I will not be named"
    return [{"id": f"talk-{k}", "turn": 2 * k + 1, "role": "assistant",
             "tokens": [{"text": f"{' ' * bool(i)}{word}{text}", "projection": 3.4 - 0.15 * i + 0.6 * wobble(i, k)}
                        for i, word in enumerate((words + "\n").split(" "))]} for k in range(3)]


def dose() -> Row:
    """dose.json: the axis lowers harm, a random direction does not."""
    curves = [{"name": "none", "layers": None, "where": "all", "points": [
        {"setting": "none", "metrics": rates(0.65, 0.05, 0.8)}]}]
    for name, works in (("axis", 1.0), ("random", 0.08)):
        points = [{"setting": f"{name} {s:+g}", "strength": s,
                   "metrics": rates(0.65 - 0.5 * works * s, 0.05 + 0.1 * works * max(0, s), 0.8 - 0.2 * works * s * s)}
                  for s in (-0.5, -0.25, 0.0, 0.25, 0.5, 1.0)]
        curves.append({"name": name, "layers": "4", "where": "all", "points": points})
    points = [{"setting": f"layers_3:5-p{p}", "percentile": p, "metrics": rates(0.65 - p / 150, 0.05, 0.8 - p / 400)}
              for p in (1, 25, 50, 75)]
    curves.append({"name": "floor", "layers": "3 to 4", "where": "all", "points": points})
    pareto = [{"setting": point["setting"], "harm": point["metrics"]["harm"], "capability": point["metrics"][
        "capability"]} for curve in curves for point in curve["points"]]
    clamped = [{"setting": "layers_3:5-p75", "layer": k, "prompt": 0.4, "generated": 0.2 + 0.05 * k} for k in (3, 4)]
    return {"curves": curves, "pareto": pareto, "clamped": clamped}


def rates(harm: float, refusal: float, capability: float) -> Row:
    return {"harm": mean(harm, 0.05), "refusal": mean(refusal, 0.02), "capability": mean(capability, 0.04)}


def calibration() -> Row:
    """calibration.json: floors of three percentiles at four layers, and two presets."""
    floors = [{"layer": k, "stated": p, "percentile_on_axis": 1 - p, "floor": 0.5 * k + 2 * (1 - p), "error": 0.05,
               "population": 1 - p, "prompt": 0.9 - p / 2, "response": 1 - p - 0.02 * k}
              for p in (0.25, 0.5, 0.75) for k in (3, 4, 5, 6)]
    presets = {"layers_3:5-p0.25": [3, 4], "layers_5:7-p0.25": [5, 6]}
    clamped = [{"preset": name, "layer": k, "where": where, "n_tokens": 100, "clamped": 0.1 * k, "correction": 0.2}
               for name, layers in presets.items() for k in layers for where in ("prompt", "generation")]
    return {"population": "population: means over response tokens of 2400 responses", "fit": "response", "where": "all",
            "meaning": ["p0.25 is the 25th percentile of the role-playing direction, the 75th of the axis"],
            "presets": presets, "thresholds": floors, "clamped": clamped}


def axis_run(folder: Path, recipe: str, **files: Any) -> Path:
    """A run folder of a recipe of the axis with those files."""
    return write(folder, environment=environment(recipe), result=result(recipe), config="seed = 0\n", **files)
