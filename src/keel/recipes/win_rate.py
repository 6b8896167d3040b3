"""Play one policy against another on a file of prompts: who gives the better answer, and how sure is that.

Each policy answers every prompt once, on random streams of its own: the two answers are independent draws, as in a
blind comparison by people. One stream for both would tie a model with itself on every prompt, and would change what
the win rate of any two related models means.

Left out: endpoints as judges. `judge` is any Python function, so one that asks an endpoint can be named there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from keel import runs
from keel.config import Config
from keel.data.load import read_prompts
from keel.data.records import Prompt
from keel.data.render import PromptRow, Template, Truncation, render_prompts, template
from keel.errors import DataError, KeelError, NumericsError
from keel.functional.statistics import agreed_points, sign_test, win_points
from keel.models.load import ModelConfig, causal_lm, load_tokenizer, scalar_model
from keel.rollout.measure import Scorer
from keel.rollout.respond import Responses, respond, sample_rows, scoring_function, summary
from keel.rollout.sample import SamplingConfig
from keel.runs import Stopped
from keel.train.inputs import FileConfig, prompt_room

__all__ = ["WinRateConfig", "run"]

Judge = Callable[[Prompt, str, str], float]
SIDES = ("policy", "opponent")
WORDS = {1.0: "win", 0.5: "tie", 0.0: "lose"}


class WinRateConfig(Config):
    """Everything `keel win-rate` reads."""

    out: Path = Field(description="run folder to make; both answers and every verdict go to samples.jsonl")
    policy: ModelConfig = Field(description="policy whose wins are counted")
    opponent: ModelConfig = Field(description="policy it is compared with")
    prompts: FileConfig = Field(description="prompts that both answer; responses in the file are ignored")
    limit: int | None = Field(None, ge=1, description="play on this many prompts; none: all")
    sampling: SamplingConfig = SamplingConfig()
    seed: int = Field(0, ge=0, description="fixes every response and every interval")
    gold: str | None = Field(None, description="package.module:function of (prompt, text, ended) -> float")
    reward_model: ModelConfig | None = Field(None, description="a judge by its score; the higher score wins")
    judge: str | None = Field(None, description="package.module:function of (prompt, first text, second text) -> "
                              "probability that the first is better")
    tie_margin: float = Field(0.0, ge=0, description="difference of two scores up to which they tie, in score units")
    micro_tokens: int = Field(8192, ge=1, description="token positions per forward pass of the reward model")

    @model_validator(mode="after")
    def _check(self) -> "WinRateConfig":
        if not (self.gold or self.judge or self.reward_model):
            raise ValueError("gold, judge and reward_model are all none; at least one of them has to decide who wins")
        return self


@dataclass(frozen=True)
class _Court:
    """What one judge said: points of the policy per prompt, scores of each side, what the order of asking did."""

    points: Tensor
    scores: dict[str, Tensor]
    order: dict[str, Any]


def run(cfg: WinRateConfig) -> runs.RunResult:
    """Write samples.jsonl and, in result.json, win, tie and lose by every judge, with intervals."""
    with runs.start("win_rate", cfg, cfg.out, seed=cfg.seed, data=[Path(cfg.prompts.path)]) as log:
        # Ask: both sides answer the prompts that fit both of them.
        words = {side: _template(getattr(cfg, side)) for side in SIDES}
        records, report = read_prompts(cfg.prompts.path, on_bad_record=cfg.prompts.on_bad_record,
                                       as_text=cfg.prompts.as_text)
        rows, skipped = _rows_of_both(cfg, words, records[: cfg.limit])
        n, n_judged = len(rows["policy"]), len(rows["policy"]) if cfg.judge else 0
        progress = log.bar(2 * n + n_judged, 0)

        def on_done(done: int) -> None:
            progress.reach(done)
            if log.stop_requested():
                raise Stopped(f"stopped after {done} of {2 * n + n_judged} responses and verdicts; nothing is kept",
                              where=str(cfg.out), remedy="Run it again with another --out.")

        answers = {side: respond(causal_lm(getattr(cfg, side)), words[side], rows[side], cfg.sampling, seed=cfg.seed,
                                 names=["win-rate", side], on_done=lambda k, before=i * n: on_done(before + k))
                   for i, side in enumerate(SIDES)}
        # Judge: the truth first, then whoever reads both answers, the proxy last.
        same = torch.tensor([a == b for a, b in zip(_said(answers["policy"]), _said(answers["opponent"]), strict=True)])
        courts = {}
        if cfg.gold:
            function = scoring_function(cfg.gold)
            courts["gold"] = _by_score(cfg, {side: answers[side].scored_by(function) for side in SIDES}, same)
        if cfg.judge:
            courts["judge"] = _by_judge(cast(Judge, scoring_function(cfg.judge)), answers,
                                        lambda done: on_done(2 * n + done))
        if cfg.reward_model is not None:
            model, own = scalar_model(cfg.reward_model), _template(cfg.reward_model)
            courts["reward_model"] = _by_score(cfg, {
                side: Scorer(model, own, words[side], cfg.micro_tokens)(answers[side]) for side in SIDES}, same)
        # Count.
        log.sample(_sample_rows(answers, courts))
        domains = [row.record.meta.get("domain") for row in rows["policy"]]
        judges = {name: _counted(cfg.seed, name, court.points) | court.order
                  | _by_domain(cfg.seed, name, court.points, domains) for name, court in courts.items()}
        print("\n".join(_line(name, counted) for name, counted in judges.items()))
        return log.finish({
            "judges": judges, "n": n, "identical": int(same.sum()),
            **{side: _lengths(cfg.seed, side, answers[side]) for side in SIDES},
            "skipped": {"records": report.n_dropped} | skipped, "headline": _headline(cfg, judges)})


def _template(spec: ModelConfig) -> Template:
    return template(load_tokenizer(spec.path, trust_remote_code=spec.trust_remote_code))


def _rows_of_both(cfg: WinRateConfig, words: dict[str, Template], records: list[Prompt],
                  ) -> tuple[dict[str, list[PromptRow]], dict[str, int]]:
    """Each side's tokens of the prompts that fit both; and what did not fit, of the side that lost more.

    Raises:
        DataError: no prompt fits both.
    """
    room = prompt_room(cfg.prompts, cfg.sampling.max_new_tokens)
    rows, cuts = {}, []
    for side in SIDES:
        rows[side], cut = render_prompts(words[side], records, room, cfg.prompts.too_long)
        cuts.append(cut)
    fits = {side: frozenset(row.record.id for row in rows[side]) for side in SIDES}
    shared = {side: [row for row in rows[side] if all(row.record.id in ids for ids in fits.values())] for side in SIDES}
    if not shared["policy"]:
        raise DataError("no prompt fits both policies", where=cfg.prompts.path,
                        remedy="Raise prompts.max_length, or choose another prompts.too_long.")
    worst = Truncation(len(records), max(c.n_fewer_turns for c in cuts), max(c.n_cut for c in cuts),
                       len(records) - len(shared["policy"]), room)
    return shared, vars(worst)


def _said(answers: Responses) -> list[tuple[str, bool]]:
    return list(zip(answers.texts, answers.rollout.ended.tolist(), strict=True))


def _by_score(cfg: WinRateConfig, scores: dict[str, Tensor], same: Tensor) -> _Court:
    """The higher score wins. One answer given twice is a tie, whatever rounding a batch brings into its two scores."""
    ours = torch.where(same, scores["opponent"], scores["policy"])
    return _Court(win_points(ours, scores["opponent"], tie_margin=cfg.tie_margin), scores, {})


def _by_judge(judge: Judge, answers: dict[str, Responses], on_done: Callable[[int], None]) -> _Court:
    """Ask about each pair in both orders; one text given twice is a tie nobody is asked about."""
    pairs = list(zip(answers["policy"].prompts, *(answers[side].texts for side in SIDES), strict=True))
    differ = torch.tensor([ours != theirs for _, ours, theirs in pairs])
    first, second = [], []
    for done, (prompt, ours, theirs) in enumerate(pairs, start=1):
        if ours == theirs:
            continue
        first.append(_verdict(judge, prompt, ours, theirs))
        second.append(1 - _verdict(judge, prompt, theirs, ours))
        on_done(done)
    ours_first, ours_second = (torch.tensor(x, dtype=torch.float64) for x in (first, second))
    points, flipped = agreed_points(ours_first, ours_second)
    in_place = torch.cat([ours_first, 1 - ours_second])
    n_first, n_decided = int((in_place > 0.5).sum()), int((in_place != 0.5).sum())
    whole = torch.full(differ.shape, 0.5, dtype=points.dtype)
    whole[differ] = points
    return _Court(whole, {}, {
        "asked": len(first), "inconsistent": int(flipped.sum()),
        "inconsistent_percent": _percent(int(flipped.sum()), len(first)),
        "first_place_percent": _percent(n_first, n_decided), "n_first_place": n_decided})


def _verdict(judge: Judge, prompt: Prompt, first: str, second: str) -> float:
    remedy = "It must give the probability, from 0 to 1, that the first text is the better one; 0.5 is a tie."
    try:
        probability = float(judge(prompt, first, second))
    except KeelError:
        raise
    except Exception as error:
        raise NumericsError(f"the judge failed: {type(error).__name__}: {error}", where=f"record {prompt.id}",
                            remedy=remedy) from error
    if not 0 <= probability <= 1:
        raise NumericsError(f"the judge gave {probability}, which is no probability", where=f"record {prompt.id}",
                            remedy=remedy)
    return probability


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _counted(seed: int, name: str, points: Tensor, *more: str) -> dict[str, Any]:
    """Shares in percent, the win rate with its interval over prompts, and the p value of an even match."""
    n_win, n_tie, n_lose = (int((points == x).sum()) for x in WORDS)
    return {"win": _percent(n_win, len(points)), "tie": _percent(n_tie, len(points)),
            "lose": _percent(n_lose, len(points)), "win_rate": summary(100 * points, seed, name, *more),
            "n": len(points), "n_decided": n_win + n_lose, "p": sign_test(n_win, n_lose)}


def _line(name: str, counted: dict[str, Any]) -> str:
    rate, shares = counted["win_rate"], ", ".join(f"{word} {counted[word]:.1f}%" for word in WORDS.values())
    return (f"{name.replace('_', ' ')}: {shares}; win rate {rate['mean']:.1f} [{rate['low']:.1f}, {rate['high']:.1f}] "
            f"over {rate['n']} prompts, p = {counted['p']:.2g}")


def _by_domain(seed: int, name: str, points: Tensor, domains: list[Any]) -> dict[str, Any]:
    named = sorted({str(domain) for domain in domains if domain is not None})
    where = {domain: torch.tensor([str(d) == domain and d is not None for d in domains]) for domain in named}
    return {"domains": {domain: _counted(seed, name, points[mask], domain) for domain, mask in where.items()}}


def _lengths(seed: int, side: str, answers: Responses) -> dict[str, Any]:
    """How long the answers of one side are; characters compare across tokenizers, tokens do not."""
    tokens = answers.rollout.tokens.response_mask.sum(1).float().cpu()
    characters = torch.tensor([float(len(text)) for text in answers.texts])
    cut = (~answers.rollout.ended).float()
    return {"tokens": summary(tokens, seed, side, "tokens"),
            "characters": summary(characters, seed, side, "characters"), "cut_percent": 100 * float(cut.mean())}


def _sample_rows(answers: dict[str, Responses], courts: dict[str, _Court]) -> list[dict[str, Any]]:
    """One row per prompt: what is asked, what each side says and scores, and every verdict."""
    sides = {side: sample_rows(0, answers[side], {name: court.scores[side] for name, court in courts.items()
                                                  if side in court.scores}, len(answers[side].texts)) for side in SIDES}
    shared, renamed = ("step", "id", "prompt", "domain"), {"reward_model": "score"}
    rows = []
    for i, (ours, theirs) in enumerate(zip(*sides.values(), strict=True)):
        said = {side: {renamed.get(k, k): v for k, v in row.items() if k not in shared}
                for side, row in zip(SIDES, (ours, theirs), strict=True)}
        verdicts = {name: WORDS[float(court.points[i])] for name, court in courts.items()}
        rows.append({**{key: ours[key] for key in shared}, **said, "verdicts": verdicts})
    return rows


def _headline(cfg: WinRateConfig, judges: dict[str, Any]) -> dict[str, Any]:
    """The win rate by the judge nearest to the truth, and how far it is from an even match."""
    name, first = next(iter(judges.items()))
    rate = first["win_rate"]
    change = {key: rate[key] - 50 for key in ("mean", "low", "high")} | {"n": rate["n"]}
    metric = f"win rate in percent against {cfg.opponent.path} by {name.replace('_', ' ')}"
    return {"metric": metric, "judge": name, "after": rate, "change": change, "higher_is_better": True}
