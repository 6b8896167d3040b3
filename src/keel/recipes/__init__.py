"""One file per method, one `run(cfg)` each. This table is all the command line knows of them."""

__all__ = ["COMMANDS"]

COMMANDS: dict[str, tuple[str, str, str]] = {
    "sft": ("keel.recipes.sft", "SFTConfig", "imitate demonstrations (supervised fine-tuning)"),
    "reward-model": ("keel.recipes.reward_model", "RewardModelConfig", "learn a score from preference pairs"),
    "ranking-rm": ("keel.recipes.ranking_rm", "RankingRMConfig", "learn a score from rankings of several responses"),
    "attribute-rm": ("keel.recipes.attribute_rm", "AttributeRMConfig", "learn a score from grades on attributes"),
    "reward-model probe": ("keel.recipes.probe", "ProbeConfig", "nine reward-hacking probes of any reward model"),
    "bench-rm": ("keel.recipes.bench_rm", "BenchRMConfig", "hold a reward model or a judge against a benchmark"),
    "bench-rm compare": ("keel.recipes.bench_compare", "BenchCompareConfig", "which one is better, and how sure"),
    "bench-rm correlate": ("keel.recipes.bench_correlate", "BenchCorrelateConfig", "benchmarks against downstream use"),
    "bench-rm select": ("keel.recipes.bench_select", "BenchSelectConfig", "pick each prompt's best response"),
    "strength": ("keel.recipes.strength", "StrengthConfig", "let reward models vote on every label; audit the data"),
    "meta-rm": ("keel.recipes.meta_rm", "MetaRMConfig", "a reward model that tells the policy's responses apart"),
    "meta-rm loop": ("keel.experiments.meta_loop", "MetaLoopConfig", "rounds of MetaRM and PPO, no new labels"),
    "ppo": ("keel.recipes.ppo", "PPOConfig", "improve a policy against a reward model (PPO-max)"),
    "preference": ("keel.recipes.preference", "PreferenceConfig", "DPO and its relatives: a policy from pairs alone"),
    "offline-pg": ("keel.recipes.offline_pg", "OfflinePGConfig", "A-LoL and its kin: learn from data and rewards"),
    "generate": ("keel.recipes.generate", "GenerateConfig", "sample responses to a file of prompts"),
    "win-rate": ("keel.recipes.win_rate", "WinRateConfig", "policy against policy: who answers better, and how sure"),
    "evaluate": ("keel.recipes.evaluate", "EvaluateConfig", "models side by side: rewards, diversity, length, a judge"),
    "chat": ("keel.recipes.chat", "ChatConfig", "talk to a model in the terminal"),
    "report": ("keel.report", "ReportConfig", "one HTML page for one run, or several side by side"),
    "data check": ("keel.data.check", "DataCheckConfig", "validate a data file; list every problem"),
    "data show": ("keel.data.show", "DataShowConfig", "look at records, and at their tokens"),
    "data convert": ("keel.data.convert", "DataConvertConfig", "write any readable file in keel's own format"),
    "sandbox export": ("keel.sandbox.export", "SandboxExportConfig", "write the town's prompts and preferences"),
    "sandbox pretrain": ("keel.experiments.pretrain", "PretrainConfig", "train the sandbox's base model anew"),
    "experiment collapse": ("keel.experiments.collapse", "CollapseConfig", "PPO over-optimises; does PPO-max too?"),
    "experiment ablate-ppo": ("keel.experiments.ablate_ppo", "AblatePPOConfig", "what keeps PPO-max stable"),
    "experiment strength": ("keel.experiments.strength", "StrengthTrialConfig", "does voting find wrong labels?"),
    "experiment contrastive": ("keel.experiments.contrastive", "ContrastiveTrialConfig", "do such terms sharpen?"),
    "experiment meta-rm": ("keel.experiments.meta_rm", "MetaRMTrialConfig", "does MetaRM see as the policy moves?"),
    "experiment rm-bench": ("keel.experiments.rm_bench", "RMBenchTrialConfig", "does a benchmark foretell use?"),
    "demo": ("keel.experiments.demo", "DemoConfig", "preferences to aligned policy and report, in minutes"),
}
"""Command -> module, config class, one line of help. Modules are imported only when their command is called."""
