"""`keel experiment offline`: does offline policy gradient learn from noisy data what imitation and DPO do not?

Source: Baheti et al. 2024, arXiv:2305.14718. A world of forty words whose rewards are known, a share of bad responses,
fourteen ways to learn from the same reference; learning rates chosen on other data, claims fixed before the seeds.
"""

import json
from typing import Any

from keel import runs
from keel.experiments.offline_methods import NOISES, Cell, OfflineTrialConfig
from keel.experiments.offline_numbers import SAYS, claims, planned, read_cell, table
from keel.experiments.offline_pictures import draw_components, draw_noise
from keel.experiments.offline_work import MODULE, first_rows, second_rows
from keel.experiments.offline_world import write_tokenizer
from keel.experiments.pictures import draw_effects
from keel.experiments.rows import do_rows
from keel.experiments.trial import conclude, judged, opened, seeds_of

__all__ = ["OfflineTrialConfig", "run"]


def run(cfg: OfflineTrialConfig, *, resume: bool = False) -> runs.RunResult:
    """Run every seed, then write tables, plots, verdicts and result.json."""
    with opened("experiment offline", cfg, resume=resume) as log:
        write_tokenizer(cfg.out / "tokenizer")
        do_rows(MODULE, cfg.out, f"1/2  references and learning rates, {cfg.seeds} seeds", first_rows(cfg), cfg.jobs)
        do_rows(MODULE, cfg.out, f"2/2  methods at {len(NOISES)} noise levels, {cfg.seeds} seeds", second_rows(cfg),
                cfg.jobs)
        measured = [{str(noise): read_cell(Cell(cfg, seed, noise)) for noise in NOISES} for seed in seeds_of(cfg)]
        rates = json.loads((cfg.out / "learning_rates.json").read_text())
        compared, findings = planned(measured), [judged(claim) for claim in claims(measured)]
        draw_noise(cfg.out / "noise", measured)
        draw_components(cfg.out / "components", measured)
        draw_effects(cfg.out / "effects", {f"{SAYS[row['one']]} - {SAYS[row['other']]}": row["seeds"]
                                           for row in compared}, title="total at noise 0.5, difference (grey: seeds)")
        return conclude(log, "Offline policy gradient from noisy data", table(measured, compared, rates["chosen"]),
                        findings, ["noise.svg", "components.svg", "effects.svg"], {
                            "seeds": seeds_of(cfg), "learning_rates": rates, "planned": compared,
                            "measured": [{noise: {name: without_each(told) for name, told in cell.items()}
                                          for noise, cell in seed.items()} for seed in measured]})


def without_each(told: dict[str, Any]) -> dict[str, Any]:
    """Numbers of a run less those of single prompts, which its exam.json has."""
    return {key: value for key, value in told.items() if key != "each"}
