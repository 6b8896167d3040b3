"""What the groups are: who is in them on held-out prompts, which words mark them, and what they read like."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from keel.data.records import Prompt
from keel.functional.clusters import word_contrast
from keel.functional.masked import row_sums
from keel.online.group_monitor import agreement
from keel.online.groups import Groups, with_places
from keel.online.memory import Memory
from keel.online.setup import Setup
from keel.rollout.measure import measure
from keel.rollout.respond import Responses, respond, scoring_function, summary

__all__ = ["portrayed"]

N_WORDS, N_EXAMPLES = 12, 6
WORD = re.compile(r"\w+(?:'\w+)?")


@dataclass(frozen=True)
class Crowd:
    """Held-out prompts with their answers, and what is known of each.

    Attributes:
        memberships: the lowest group first. [B G]
        likeliest: the group each belongs to. [B]
        labels: what the prompts say of themselves, or nothing.
        columns: score, gold, length, kl (nats per response), by name. [B] each
    """

    responses: Responses
    memberships: Tensor
    likeliest: Tensor
    labels: tuple[str | None, ...]
    columns: dict[str, Tensor]


def portrayed(setup: Setup, groups: Groups, memory: Memory) -> dict[str, Any]:
    """Write groups.json: a portrait of each group on the held-out prompts. What of it belongs into result.json."""
    cfg = groups.cfg
    index = [i for i, row in enumerate(setup.held_out)
             if not groups.labels or row.record.label(cfg.column) in groups.labels]
    if not index:
        return {}
    crowd = assembled(setup, groups, memory, index)
    names, seed = groups.names(memory["groups"]["order"]), setup.cfg.seed
    found = agreement(crowd.memberships, crowd.responses.prompts, cfg.column) if groups.head is not None else {}
    told = {"source": cfg.source, "level": cfg.level if groups.head is not None else None, "column": cfg.column,
            "n_prompts": len(crowd.labels), "labels": sorted({label for label in crowd.labels if label is not None}),
            "agreement": {name.removeprefix("groups/"): x for name, x in found.items()} or None,
            "groups": [portrait(crowd, g, name, seed) for g, name in enumerate(names)]}
    (setup.cfg.out / "groups.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    brief = [{name: one[name] for name in ("name", "mass", "score", "gold", "length")} for one in told["groups"]]
    return {"groups": brief, "agreement": told["agreement"]}


def assembled(setup: Setup, groups: Groups, memory: Memory, index: Sequence[int]) -> Crowd:
    """The answers of the exam to these held-out prompts, and where critic and head say that each belongs."""
    cfg, models = setup.cfg, setup.models
    everyone = respond(models.policy, setup.words, setup.held_out, cfg.sampling, seed=cfg.seed, names=["evaluate"])
    responses = Responses(everyone.rollout.rows(list(index)), tuple(everyone.prompts[i] for i in index),
                          tuple(everyone.texts[i] for i in index))
    rollout = measure(replace(responses, rollout=with_places(responses.rollout, groups)), policy=models.policy,
                      reference=models.reference, critic=models.critic, micro_tokens=cfg.micro_tokens, kl="k3",
                      temperature=cfg.sampling.logprob_temperature)
    with torch.no_grad():
        p = groups.columns(rollout.states, responses.prompts).cpu()[:, memory["groups"]["order"]]
    mask = rollout.tokens.response_mask
    columns = {"score": setup.rewards(responses).total, "length": mask.sum(1).float().cpu(),
               "kl": row_sums(rollout.kl, mask).cpu()}
    if cfg.gold is not None:
        columns["gold"] = responses.scored_by(scoring_function(cfg.gold))
    labels = tuple(prompt.label(groups.cfg.column) for prompt in responses.prompts)
    return Crowd(responses, p, p.argmax(1), labels, columns)


def portrait(crowd: Crowd, g: int, name: str, seed: int) -> dict[str, Any]:
    """One group: soft mass; of the responses whose likeliest group it is, means, labels, words and examples."""
    members = (crowd.likeliest == g).nonzero()[:, 0].tolist()
    means = {column: summary(x[members], seed, "groups", name, column) if members else None
             for column, x in crowd.columns.items() if column != "kl"}
    tokens = float(crowd.columns["length"][members].sum())
    prompts, texts = [asked(prompt) for prompt in crowd.responses.prompts], crowd.responses.texts
    return {"name": name, "n": len(members), "mass": float(crowd.memberships[:, g].mean()), "gold": None, **means,
            "kl": float(crowd.columns["kl"][members].sum()) / tokens if tokens else None,
            "labels": dict(sorted(Counter(crowd.labels[i] for i in members if crowd.labels[i] is not None).items())),
            "words": {"prompt": marking(prompts, members), "response": marking(texts, members)},
            "examples": [example(crowd, i, g) for i in sorted(
                members, key=lambda i: (-float(crowd.memberships[i, g]), i))[:N_EXAMPLES]]}


def marking(texts: Sequence[str], members: Sequence[int]) -> list[dict[str, Any]]:
    """Words that members use more often than others, the surest first: z of the weighted log-odds above 2."""
    inside = set(members)
    here, elsewhere = (Counter(word for i, text in enumerate(texts) if (i in inside) == wanted
                               for word in WORD.findall(text.lower())) for wanted in (True, False))
    if not here or not elsewhere:
        return []
    return [{"word": word, "z": round(z, 2), "here": here[word], "elsewhere": elsewhere[word]}
            for word, z in word_contrast(here, elsewhere)[:N_WORDS] if z > LEAST_Z]


LEAST_Z = 2.0


def asked(prompt: Prompt) -> str:
    """The text of a prompt, of a conversation its last turn."""
    return prompt.messages[-1].content if prompt.messages else prompt.text or ""


def example(crowd: Crowd, i: int, g: int) -> dict[str, Any]:
    """One member as people read it."""
    return {"id": crowd.responses.prompts[i].id, "label": crowd.labels[i],
            "membership": round(float(crowd.memberships[i, g]), 4), "score": float(crowd.columns["score"][i]),
            "gold": float(crowd.columns["gold"][i]) if "gold" in crowd.columns else None,
            "prompt": asked(crowd.responses.prompts[i]), "response": crowd.responses.texts[i]}
