"""Scoring functions of sequence rewards for tests. CALLS holds the responses that `counted` was asked about."""

import math

CALLS: list[str] = []
BROKEN: set[str] = set()


def counted(prompt, response):
    CALLS.append(response)
    if response in BROKEN:
        raise RuntimeError("killed here")
    return len(response) / 100


def vowels(prompt, response):
    return sum(letter in "aeiou" for letter in response)


def logit(prompt, response):
    return -2.5


def nowhere(prompt, response):
    return math.nan if response == "bad" else 0.5


def a_little_above(prompt, response):
    return 1.0 + len(response) * 1e-7


def of_record(prompt, response, ended):
    return prompt.meta["worth"] + 0.25 * ended


def says(prompt, response):
    return "very good"
