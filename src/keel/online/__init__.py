"""What PPO and its relatives share: settings, models, the update, and what happens between phases."""
