"""Which loss a variant has, which settings belong to it, and where the reference's numbers go."""


import numpy as np
import pytest
import tolerances as tol
import torch
from references import offline as slow

from keel.data.collate import collate
from keel.data.render import Row
from keel.errors import ConfigError
from keel.train.offline import (
    BY_ADVANTAGE,
    BY_REWARD,
    OfflineLossConfig,
    SelectionConfig,
    aligned,
    offline_loss,
)
from keel.train.offline import ranked_loss as ranked

OWN, REF = [[-1.0, -2.0, 0.0], [-0.5, -0.1, -3.0]], [[-1.5, -1.5, 0.0], [-0.25, -2.0, -1.0]]
MASK = torch.tensor([[True, True, False], [True, True, True]])
WORTH = [0.8, 0.3]


def loss_of(**settings):
    cfg = OfflineLossConfig(**settings)
    ref = torch.tensor(REF, dtype=torch.float64) if cfg.has_reference else None
    return offline_loss(cfg, torch.tensor(OWN, dtype=torch.float64), ref, torch.tensor(WORTH, dtype=torch.float64),
                        MASK)[0].tolist()


def by_hand(reference, *rest, worth=tuple(WORTH)):
    return pytest.approx([reference(OWN[i][: 2 + i], *(x[i][: 2 + i] for x in rest if isinstance(x, list)), worth[i],
                                    *(x for x in rest if not isinstance(x, list)))[0] for i in (0, 1)],
                         rel=tol.RELATIVE64)


def test_every_variant_is_the_loss_of_its_name():
    assert loss_of(variant="wbc") == loss_of(variant="a_lol_ref_free") == by_hand(slow.nll)
    assert loss_of(variant="r_gold") == by_hand(slow.gold, 0.1)
    assert loss_of(variant="r_gold", gold_floor=0.7) == by_hand(slow.gold, 0.7)
    for name in ("r_lol", "a_lol"):
        assert loss_of(variant=name) == by_hand(slow.lol, REF, 0.9)
        assert loss_of(variant=name, clip=0.2) == by_hand(slow.lol, REF, 0.2)
    assert loss_of(variant="a_lol_seq", clip=None) == by_hand(slow.lol_seq, REF, None)
    for name in ("a_lol_kl", "r_lol_kl"):
        assert loss_of(variant=name, kl_coef=0.1) == by_hand(slow.lol_difference, REF, 0.1)
        assert loss_of(variant=name, kl_coef=0.2, kl_term="quotient") == by_hand(slow.lol_quotient, REF, 0.2)
        assert loss_of(variant=name, kl_coef=0.3, kl_term="k3") == by_hand(slow.lol_k3, REF, 0.3)


def test_a_weight_of_one_and_the_mean_over_tokens():
    assert loss_of(variant="a_lol", weight="one") == by_hand(slow.lol, REF, 0.9, worth=(1.0, 1.0))
    assert loss_of(variant="wbc", weight="one") == by_hand(slow.nll, worth=(1.0, 1.0))
    for settings, reference, by_sum in (
            ({"variant": "wbc"}, lambda own, ref, w: slow.nll(own, w), False),
            ({"variant": "r_gold"}, lambda own, ref, w: slow.gold(own, w, 0.1), False),
            ({"variant": "a_lol"}, lambda own, ref, w: slow.lol(own, ref, w, 0.9), True),
            ({"variant": "a_lol_kl", "kl_coef": 0.1}, lambda own, ref, w: slow.lol_difference(own, ref, w, 0.1),
             True)):
        expected = [slow.of_means(reference, OWN[i][: 2 + i], REF[i][: 2 + i], WORTH[i], by_sum)[0] for i in (0, 1)]
        assert loss_of(length_norm=True, **settings) == pytest.approx(expected, rel=tol.RELATIVE64)


def test_pro_of_prompts_with_unlike_numbers_of_responses():
    sums, n = torch.tensor([-2.0, -9.0, -4.0, -3.0, -1.0]), torch.tensor([2.0, 3.0, 4.0, 1.0, 2.0])
    rewards, sizes = torch.tensor([0.9, 0.5, 0.1, 0.7, 0.2]), [3, 2]
    loss, stats = ranked(OfflineLossConfig(variant="pro", sft_coef=0.1), sums, n, rewards, sizes)
    first = slow.pro([-1.0, -3.0, -1.0], [0.9, 0.5, 0.1])[0], slow.pro([-3.0, -0.5], [0.7, 0.2])[0]
    assert stats["rank"].tolist() == pytest.approx(first, rel=tol.RELATIVE32)
    assert loss.tolist() == pytest.approx([first[0] + 0.1 * 4 * 2.0, first[1] + 0.1 * 3.0], rel=tol.RELATIVE32)


def test_numbers_of_a_response_stand_where_its_tokens_stand():
    rows = [Row([1, 5, 6, 7], 2, "a"), Row([1, 5, 5, 5, 6], 4, "b")]
    batch = collate(rows, 0)
    found = aligned([np.array([-1.0, -2.0], dtype=np.float32), np.array([-3.0], dtype=np.float32)], rows, batch)
    assert found.tolist() == [[0, 0, -1, -2, 0], [0, 0, 0, 0, -3]]
    assert ((found != 0) == batch.response_mask).all()


@pytest.mark.parametrize(("settings", "message"), [
    ({"variant": "nll", "clip": 0.5}, "loss.clip does nothing with variant='nll'; it belongs to a_lol"),
    ({"variant": "wbc", "gold_floor": 0.5}, "loss.gold_floor does nothing with variant='wbc'"),
    ({"kl_coef": 0.1}, "loss.kl_coef does nothing with variant='a_lol'"),
    ({"kl_term": "k3"}, "loss.kl_term does nothing with variant='a_lol'"),
    ({"sft_coef": 0.1}, "loss.sft_coef does nothing with variant='a_lol'"),
    ({"variant": "nll", "weight": "one"}, "loss.weight does nothing with variant='nll'"),
    ({"variant": "a_lol_kl"}, "variant='a_lol_kl' needs loss.kl_coef"),
    ({"variant": "pro", "length_norm": True}, "loss.length_norm does nothing with variant='pro'"),
    ({"clip": 0.0}, "clip = 0"), ({"clip": -1.0}, "clip = -1"),
    ({"gold_floor": 1.5, "variant": "r_gold"}, "gold_floor"),
    ({"variant": "a_lol_kl", "kl_coef": -0.1}, "kl_coef = -0.1"), ({"variant": "dpo"}, "variant = 'dpo'"),
])
def test_a_setting_that_does_nothing_or_cannot_be_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        OfflineLossConfig.checked(settings)


def test_settings_that_spell_out_every_default_are_no_contradiction():
    """As in the config.toml of a run that is resumed."""
    for variant in ("nll", "a_lol", "pro", "r_gold"):
        cfg = OfflineLossConfig(variant=variant)
        assert OfflineLossConfig.checked(cfg.model_dump()) == cfg


def test_what_is_usual_for_a_variant():
    usual = {variant: (SelectionConfig().keeps(variant), SelectionConfig().draws(variant),
                       SelectionConfig().needs_value(variant)) for variant in (*BY_ADVANTAGE, *BY_REWARD, "nll", "pro")}
    assert {usual[v] for v in BY_ADVANTAGE} == {("positive", "priority", True)}
    assert {usual[v] for v in BY_REWARD} == {("all", "priority", False)}
    assert usual["nll"] == usual["pro"] == ("all", "uniform", False)
    assert SelectionConfig(keep="positive").needs_value("nll") and SelectionConfig(keep="all").needs_value("a_lol")
    for wrong in ({"keep": "top"}, {"top_fraction": 0.5}):
        with pytest.raises(ConfigError, match="do not go together: top needs it, the others take none"):
            SelectionConfig.checked(wrong)
