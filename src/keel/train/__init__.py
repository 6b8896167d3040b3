"""Mechanics of training that know no method: optimiser, schedule, checkpoints, tallies, alarms."""
