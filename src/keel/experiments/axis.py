"""`keel experiment axis`: is the Assistant Axis found where it was planted, and what is it good for?

Source: Lu et al. 2026, arXiv:2601.10387. Three models: a toy in which it is known of each response who speaks; the same
toy with dialogues in which feelings make it drift, fine-tuned with and without an anchor; and the town, in which some
roles help with what the assistant refuses.
"""

from keel import runs
from keel.experiments.axis_numbers import bars, claims, read_measured, table
from keel.experiments.axis_pictures import draw_arms, draw_doses, draw_drift, draw_prices
from keel.experiments.axis_settings import AxisTrialConfig
from keel.experiments.axis_work import rows
from keel.experiments.rows import do_rows
from keel.experiments.trial import conclude, judged, opened, seeds_of

__all__ = ["AxisTrialConfig", "run"]


def run(cfg: AxisTrialConfig, *, resume: bool = False) -> runs.RunResult:
    """Run every seed, then write tables, plots, verdicts and result.json."""
    with opened("experiment axis", cfg, resume=resume) as log:
        do_rows("keel.experiments.axis_work", cfg.out, f"toy, dialogues and town, {cfg.seeds} seeds", rows(cfg),
                cfg.jobs)
        seeds = [read_measured(cfg.out / f"seed-{seed}") for seed in seeds_of(cfg)]
        findings = [judged(claim) for claim in claims(seeds)]
        for draw in (draw_doses, draw_prices, draw_drift, draw_arms):
            draw(cfg.out, seeds)
        return conclude(log, "The Assistant Axis", table(seeds), findings,
                        ["dose.svg", "tradeoff.svg", "drift.svg", "arms.svg"],
                        {"seeds": seeds_of(cfg), "bars": bars(seeds), "measured": seeds})
