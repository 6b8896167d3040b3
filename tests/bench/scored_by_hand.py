"""Functions that score in a test, and some that do not."""

import math

import numpy as np
import torch

SECRET = "words of a harmful response"
SEEN = []


def length(prompt, response):
    return len(response)


def sees(prompt, response):
    SEEN.append((prompt, response))
    return 0.5


def sees_record(prompt, response, ended):
    SEEN.append((prompt, response))
    return float(ended)


def of_numpy(prompt, response):
    return np.float32(len(response)) if len(response) % 2 else torch.tensor(float(len(response)))


def not_finite(prompt, response):
    return math.nan if response == "no" else -math.inf


def fails(prompt, response):
    raise ValueError(f"cannot read {response}")


def says(prompt, response):
    return "0.5"


def nothing(prompt, response):
    return None


def several(prompt, response):
    return np.zeros(2)
