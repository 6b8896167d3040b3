"""TF-IDF informativeness: the mean weight of the terms of a text, by hand and against plain loops."""

import json
import math
import re

import pytest
import tolerances as tol
import torch

from keel.bench.informativeness import Informativeness
from keel.bench.items import Asked, keyed_prompt, response_key
from keel.errors import DataError

WORDS = ["red", "green", "blue", "Cyan", "brown", "grey"]
FITTED = ["red green", "red blue blue", "Red! cyan, a I x", "brown grey", "brown_grey 42"]


def write(folder, texts, name="f.jsonl"):
    (folder / name).write_text("".join(
        json.dumps({"prompt": f"q{i}", "completion": text}) + "\n" for i, text in enumerate(texts)))
    return str(folder / name)


def scored(scorer, *texts):
    asked = [Asked(response_key(keyed_prompt((), "q"), text), keyed_prompt((), "q"), text) for text in texts]
    batches = scorer.plan(asked)
    assert [i for batch in batches for i in batch] == list(range(len(asked)))
    return [score for batch in batches for score in scorer.score([asked[i] for i in batch])]


def by_loops(fitted, text):
    """From the definition: counts times smooth idf, normalised, the mean of what is not zero, times n/10 below 5."""
    terms = [re.findall(r"\w\w+", one.lower()) for one in fitted]
    known = {term for one in terms for term in one}
    counts = {}
    for term in re.findall(r"\w\w+", text.lower()):
        if term in known:
            counts[term] = counts.get(term, 0) + 1
    if not counts:
        return 0.0
    weights = [n * (math.log((1 + len(fitted)) / (1 + sum(term in one for one in terms))) + 1)
               for term, n in counts.items()]
    norm = math.sqrt(sum(w * w for w in weights))
    return sum(w / norm for w in weights) / len(weights) * (len(weights) / 10 if len(weights) < 5 else 1)


def test_it_is_the_mean_weight_of_the_known_terms(tmp_path):
    texts = ["red", "RED red red", "red blue blue unknown", "red green blue cyan", "red green blue cyan brown",
             " ".join(WORDS), "brown_grey 42 red, red. Blue", "nothing known here", "", "a I x"]
    found = scored(Informativeness("tf", write(tmp_path, FITTED)), *texts)
    expected = [by_loops(FITTED, text) for text in texts]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), **tol.FLOAT64)
    # One term has the normalised weight 1, whatever its count: a tenth is left of it.
    assert found[:2] == [0.1, 0.1]
    assert found[-3:] == [0.0, 0.0, 0.0]
    assert all(isinstance(x, float) and 0 <= x <= 1 for x in found)


def test_the_factor_jumps_between_four_and_five_terms_and_longer_texts_score_lower(tmp_path):
    """All terms are equally rare, so n of them have the weight 1 / sqrt(n) each."""
    names = [f"term{i}" for i in range(9)]
    found = scored(Informativeness("tf", write(tmp_path, names)), *(" ".join(names[:n]) for n in range(1, 10)))
    expected = [n / 10 / math.sqrt(n) for n in range(1, 5)] + [1 / math.sqrt(n) for n in range(5, 10)]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), **tol.FLOAT64)


def test_the_fingerprint_is_that_of_the_weights(tmp_path):
    one = Informativeness("tf", write(tmp_path, FITTED))
    turned = Informativeness("tf", write(tmp_path, FITTED[::-1], "turned.jsonl"))
    other = Informativeness("tf", write(tmp_path, [*FITTED, "red"], "other.jsonl"))
    assert one.fingerprint == turned.fingerprint != other.fingerprint
    assert json.dumps(one.fingerprint)
    assert (one.name, one.concurrency, one.resolution, one.flagged) == ("tf", 1, 0.0, {})
    assert one.counts == {"responses fitted on": 5, "rows not read": 0, "terms": 8}


def test_rows_that_cannot_be_read_are_counted(tmp_path):
    path = write(tmp_path, FITTED)
    with open(path, "a") as file:
        file.write('{"prompt": "q", "completion": ""}\n')
    assert Informativeness("tf", path).counts["rows not read"] == 1


def test_both_responses_of_a_pair_are_fitted_on(tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "why", "chosen": "red", "rejected": "blue"}) + "\n")
    assert scored(Informativeness("tf", str(tmp_path / "p.jsonl")), "red", "blue", "why") == [0.1, 0.1, 0.0]


def test_many_texts_are_scored_a_batch_at_a_time(tmp_path):
    scorer = Informativeness("tf", write(tmp_path, FITTED))
    texts = [" ".join(WORDS[: 1 + i % 6]) for i in range(2500)]
    found = scored(scorer, *texts)
    assert found == scored(scorer, *texts[:6]) * 416 + scored(scorer, *texts[:4])
    asked = [Asked(str(i), keyed_prompt((), "q"), text) for i, text in enumerate(texts)]
    assert [len(batch) for batch in scorer.plan(asked)] == [1024, 1024, 452]
    assert scorer.plan([]) == []


def test_a_file_without_terms_is_refused(tmp_path):
    with pytest.raises(DataError, match="none of 2 responses has a term, so there are no TF-IDF weights"):
        Informativeness("tf", write(tmp_path, ["a", "!"]))
