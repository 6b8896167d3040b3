"""Pairs of a ranking counted one by one."""

from itertools import combinations


def order_of(scores: list[float], level: list[int]) -> tuple[int, int, int, int]:
    """Right, wrong and all ordered pairs, and whether a response of level 0 alone has the highest score.

    Scores stand from best to worst; responses on one level tie.
    """
    ordered = [(i, j) for i, j in combinations(range(len(scores)), 2) if level[i] < level[j]]
    right = sum(scores[i] > scores[j] for i, j in ordered)
    wrong = sum(scores[i] < scores[j] for i, j in ordered)
    highest = max(scores)
    winners = [i for i, score in enumerate(scores) if score == highest]
    return right, wrong, len(ordered), int(all(level[i] == 0 for i in winners))
