"""The contrastive term of a reward model: its settings, prototypes, queue, and which rows are one text."""

import math

import pytest
import tiny
import tolerances as tol
import torch

from keel.data.collate import pair_batches
from keel.data.load import read_pairs
from keel.data.render import render_pairs, template
from keel.errors import ConfigError
from keel.functional.contrastive import as_differences, simcse, swav
from keel.models.load import load_tokenizer
from keel.train.contrast import ContrastiveConfig, Prototypes, contrastive_loss, same_texts

CPU = torch.device("cpu")


def views(n: int = 6, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.randn(2, n, width, generator=torch.Generator().manual_seed(0))
    return drawn[0], drawn[1]


def nobody(n: int = 6) -> torch.Tensor:
    return torch.eye(n, dtype=torch.bool)


@pytest.mark.parametrize("kind, on, weight, tau, n", [
    ("simcse", "pairs", 1.0, 0.05, None), ("simcse", "differences", 1.0, 0.05, None), ("swav", "pairs", 0.1, 0.1, 50),
    ("swav", "differences", 0.5, 0.1, 20)])
def test_the_reports_settings_are_the_defaults(kind, on, weight, tau, n):
    cfg = ContrastiveConfig(kind=kind, on=on)
    assert (cfg.weight, cfg.tau) == (weight, tau) and cfg.dropout == 0.05
    if n:
        assert Prototypes(cfg, 8, 0, CPU).weight.shape == (n, 8)
    chosen = ContrastiveConfig(kind=kind, on=on, coef=3.0, temperature=0.7)
    assert (chosen.weight, chosen.tau) == (3.0, 0.7)


def test_rows_are_pairs_or_differences():
    first, second = views()
    loss, stats = contrastive_loss((first, second), ContrastiveConfig(), None, nobody())
    torch.testing.assert_close(loss, simcse(first, second)[0], **tol.EXACT)
    assert stats.keys() == {"contrastive/found"}
    loss, _ = contrastive_loss((first, second), ContrastiveConfig(on="differences"), None, nobody())
    torch.testing.assert_close(loss, simcse(as_differences(first), as_differences(second))[0], **tol.EXACT)
    same = nobody()
    same[0, 3] = same[3, 0] = True
    loss, _ = contrastive_loss((first, second), ContrastiveConfig(), None, same)
    torch.testing.assert_close(loss, simcse(first, second, same=same)[0], **tol.EXACT)


def test_prototypes_learn_from_both_views_and_say_how_they_are_used():
    cfg = ContrastiveConfig(kind="swav", prototypes=4)
    made = Prototypes(cfg, 5, 0, CPU)
    loss, stats = contrastive_loss(views(), cfg, made, nobody())
    torch.testing.assert_close(loss, swav(*views(), made.weight, temperature=0.1)[0], **tol.EXACT)
    loss.mean().backward()
    assert made.weight.grad is not None and bool((made.weight.grad != 0).any())
    assert 0 <= float(stats["contrastive/usage"]) <= math.log(4) + tol.SIX_DECIMALS
    one = Prototypes(ContrastiveConfig(kind="swav", prototypes=2), 2, 0, CPU)
    with torch.no_grad():
        one.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    near = torch.tensor([[3.0, 0.1], [2.0, 0.0], [0.1, 1.0], [0.0, 5.0]])
    assert float(contrastive_loss((near, near), cfg, one, nobody(4))[1]["contrastive/usage"]) == pytest.approx(
        math.log(2), rel=tol.RELATIVE32)


def test_other_seeds_draw_other_prototypes():
    cfg = ContrastiveConfig(kind="swav")
    first, again, other = (Prototypes(cfg, 8, seed, CPU).weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_queue_helps_once_it_is_full_newest_first():
    cfg = ContrastiveConfig(kind="swav", prototypes=3, queue=8)
    made = Prototypes(cfg, 5, 0, CPU)
    assert made.queued() is None and Prototypes(ContrastiveConfig(kind="swav"), 5, 0, CPU).queued() is None
    first, second = views()
    contrastive_loss((first, second), cfg, made, nobody())
    assert made.queued() is None  # 6 of 8
    contrastive_loss((2 * first, second), cfg, made, nobody())
    assert torch.equal(made.queued(), torch.cat([2 * first, first[:2]]))
    plain = swav(first, second, made.weight, temperature=0.1)[0]
    helped = contrastive_loss((first, second), cfg, made, nobody())[0]
    assert not torch.allclose(plain, helped)
    assert "queue" in made.state_dict() and int(made.state_dict()["filled"]) == 18  # a resumed run goes on with it


def test_rows_of_one_text_are_found_in_any_micro_batch(tmp_path):
    folder = str(tiny.llama(tmp_path / "m"))
    words = template(load_tokenizer(folder))
    rows, _ = render_pairs(words, read_pairs(tiny.pairs(tmp_path / "pairs.jsonl"))[0][:3], 64)
    step = [rows[0], rows[1], rows[0], rows[2]]
    for micro in (10_000, 20):
        parts = pair_batches(step, micro_tokens=micro, pad_id=words.pad_id)
        ids = [name for part in parts for name in part.tokens.record_ids[:part.n_pairs]]
        twins = torch.tensor([[a == b for b in ids] for a in ids])
        different = torch.zeros_like(twins)
        chosen = [tuple(row.prompt_ids + row.chosen_ids) for name in ids for row in rows if row.record_id == name]
        rejected = [tuple(row.prompt_ids + row.rejected_ids) for name in ids for row in rows if row.record_id == name]
        texts = chosen + rejected
        assert same_texts(parts, "pairs").tolist() == [[a == b for b in texts] for a in texts]
        assert same_texts(parts, "differences").tolist() == torch.cat(
            [torch.cat([twins, different], 1), torch.cat([different, twins], 1)]).tolist()


@pytest.mark.parametrize("more", [{"prototypes": 4}, {"queue": 8}, {"freeze_prototypes": 3}])
def test_simcse_has_no_prototypes(more):
    with pytest.raises(ConfigError, match="only swav has prototypes"):
        ContrastiveConfig.checked({"kind": "simcse", **more})
