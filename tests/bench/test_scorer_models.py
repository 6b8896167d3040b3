"""Scores of models: the same as plain transformers on the whole template, in whatever batches; and what is too long."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import tiny
import tolerances as tol
import torch

from keel.bench.items import Asked, keyed_prompt, response_key
from keel.bench.scorers import ScorerConfig, load_scorer
from keel.data.collate import collate
from keel.data.records import Message
from keel.data.render import Row, template
from keel.errors import ConfigError, DataError, ModelError
from keel.models.forward import response_scores
from keel.models.load import ModelConfig, load_tokenizer, save_model, scalar_model
from keel.models.lora import LoraSettings

ANSWERS = ["yes please .", "no", "the cat sat on the red dog why ? why ?", ""]
TALK = [{"role": "user", "content": "hello ?"}, {"role": "assistant", "content": "yes ."},
        {"role": "user", "content": "why the cat"}]
CHATML = tiny.TEMPLATE.replace("'<eos>' }}{% endgeneration %}", "'<eos>' }}{% endgeneration %} red ")
"""Writes something behind the token that ends the assistant's turn, as ChatML writes a line break."""


def asked(prompt, response):
    found = keyed_prompt([Message(**turn) for turn in prompt]) if isinstance(prompt, list) else keyed_prompt([], prompt)
    return Asked(response_key(found, response), found, response)


PROMPTS = [*tiny.conversations(4), TALK]
ASKED = sorted((asked(prompt, text) for prompt in PROMPTS for text in ANSWERS), key=lambda one: one.id)
SOURCE = {asked(prompt, text).id: (prompt, text) for prompt in PROMPTS for text in ANSWERS}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Reward models as transformers saves them, on three kinds of trunk; policy and reference."""
    home = tmp_path_factory.mktemp("scorers")
    for kind in ("llama", "gpt2", "bert"):
        trunk = getattr(tiny, kind)(home / f"{kind}-trunk")
        model = scalar_model(ModelConfig(path=str(trunk)), seed=1)
        model.config.pad_token_id = 0 if kind == "bert" else None
        model.save_pretrained(home / kind)
        load_tokenizer(str(trunk)).save_pretrained(home / kind)
    words = load_tokenizer(str(home / "gpt2"))
    words.pad_token = None
    words.save_pretrained(home / "gpt2")
    tiny.llama(home / "policy", seed=3)
    words = load_tokenizer(str(tiny.llama(home / "policy-bare")))
    words.chat_template = None
    (home / "policy-bare" / "chat_template.jinja").unlink()
    words.save_pretrained(home / "policy-bare")
    tiny.llama(home / "reference", seed=4)
    return home


def scorer(**settings):
    return load_scorer(ScorerConfig.checked({name: str(value) if name in ("model", "policy", "reference") else value
                                             for name, value in settings.items()}))


def scored(found, rows=ASKED):
    """Score by id, through the batches that the scorer plans."""
    batches = found.plan(rows)
    assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))
    return {rows[i].id: score for batch in batches
            for i, score in zip(batch, found.score([rows[i] for i in batch]), strict=True)}


def in_order(scores, rows=ASKED):
    return torch.tensor([scores[one.id] for one in rows], dtype=torch.float64)


def by_transformers(folder, template=None):
    """What a user of transformers would write: the chat template over the whole conversation, one row at a time."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    words, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    words.chat_template = template or words.chat_template
    found = []
    for one in ASKED:
        prompt, response = SOURCE[one.id]
        text = words.apply_chat_template([*prompt, {"role": "assistant", "content": response}], tokenize=False)
        ids = torch.tensor([words(text, add_special_tokens=False).input_ids])
        with torch.no_grad():
            found.append(float(model.eval()(input_ids=ids).logits[0, 0]))
    return torch.tensor(found, dtype=torch.float64)


def test_a_response_that_was_cut_has_no_end(home):
    """The reward model of rollouts reads such a response in the same way."""
    whole = asked(PROMPTS[0], "yes please .")
    cut = replace(whole, id="cut", ended=False)
    found = scorer(model=home / "llama")
    found.plan([whole, cut])
    words = template(load_tokenizer(str(home / "llama")))
    rows = [Row(words.prompt_ids(whole.prompt) + words.response_ids(whole.response, ended), 1, "r")
            for ended in (True, False)]
    batch = collate(rows, words.pad_id)
    expected = response_scores(scalar_model(ModelConfig(path=str(home / "llama"))), batch).tolist()
    assert found.score([whole, cut]) == pytest.approx(expected, rel=tol.RELATIVE32)
    assert expected[0] != pytest.approx(expected[1], rel=tol.RELATIVE32)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_scores_are_those_of_plain_transformers(home, kind):
    found = scorer(model=home / kind)
    scores = in_order(scored(found))
    torch.testing.assert_close(scores, by_transformers(home / kind), **tol.FLOAT32)
    assert found.name == kind and found.concurrency == 1 and found.counts == {"rows: whole": len(ASKED)}
    assert len(set(scores.tolist())) == len(ASKED)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_batches_do_not_change_scores(home, kind):
    whole, small = scorer(model=home / kind), scorer(model=home / kind, micro_tokens=40)
    assert len(small.plan(ASKED)) > 4 > len(whole.plan(ASKED))
    torch.testing.assert_close(in_order(scored(small)), in_order(scored(whole)), **tol.FLOAT32)


def test_batches_are_the_same_in_whatever_order_responses_come(home):
    found, turned = scorer(model=home / "llama", micro_tokens=40), ASKED[::-1]
    named = [[[rows[i].id for i in part] for part in found.plan(rows)] for rows in (ASKED, turned)]
    assert named[0] == named[1]
    lengths = [len(found._planned[name][0]) for part in named[0] for name in part]
    assert lengths == sorted(lengths, reverse=True)
    assert scored(found) == scored(scorer(model=home / "llama", micro_tokens=40), turned)


def test_the_row_ends_as_the_model_was_trained(home, tmp_path):
    """What was trained elsewhere reads all that the template writes, keel's own models the end of the turn."""
    template = tmp_path / "template.jinja"
    template.write_text(CHATML)
    whole = scorer(model=home / "llama", chat_template=str(template))
    expected = by_transformers(home / "llama", CHATML)
    torch.testing.assert_close(in_order(scored(whole)), expected, **tol.FLOAT32)
    turn = scorer(model=home / "llama", chat_template=str(template), ending="turn")
    assert not torch.allclose(in_order(scored(turn)), expected, **tol.FLOAT32)
    # Behind the turns before the last both templates differ.
    alone = torch.tensor([len(SOURCE[one.id][0]) == 1 for one in ASKED])
    torch.testing.assert_close(in_order(scored(turn))[alone], by_transformers(home / "llama")[alone], **tol.FLOAT32)
    spec = ModelConfig(path=str(home / "llama"))
    save_model(scalar_model(spec), load_tokenizer(spec.path), tmp_path / "own", pad_id=0)
    own = scorer(model=tmp_path / "own", chat_template=str(template))
    assert own.fingerprint["ending"] == "turn" and whole.fingerprint["ending"] == "template"
    assert scored(own) == scored(turn)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_tokenizer_that_adds_a_beginning_to_a_template_that_has_one(home, tmp_path, kind):
    from tokenizers.processors import TemplateProcessing

    shutil.copytree(home / kind, tmp_path, dirs_exist_ok=True)
    words = load_tokenizer(str(tmp_path))
    words.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    words.save_pretrained(tmp_path)
    found = scorer(model=tmp_path)
    assert words("no").input_ids[0] == 1
    torch.testing.assert_close(in_order(scored(found)), by_transformers(home / kind), **tol.FLOAT32)
    assert all((ids == 1).sum() == 1 and ids[0] == 1 for ids, _ in found._planned.values())


def test_templates_for_models_without_one(home, tmp_path):
    shutil.copytree(home / "llama", tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"no chat template, so how this model reads .* is not known\n"
                                          r".*Set scorer\.chat_template .*: chatml, plain, question-answer, or a file"):
        scorer(model=tmp_path).plan(ASKED)
    with pytest.raises(ConfigError, match="no chat template, so how this model reads"):
        scorer(policy=home / "policy-bare").plan(ASKED)
    one = [asked(TALK, "no")]
    found = scorer(model=tmp_path, chat_template="plain")
    found.plan(one)
    words = load_tokenizer(str(tmp_path))
    spelled = words("<bos>User: hello ?\n\nAssistant: yes .<eos>User: why the cat\n\nAssistant: no<eos>").input_ids
    assert found._planned[one[0].id][0].tolist() == spelled
    with pytest.raises(ConfigError, match=r"no chat template .nowhere.: it is not one of chatml, plain, question"):
        scorer(model=home / "llama", chat_template="nowhere")
    words.chat_template = {"default": tiny.TEMPLATE, "other": CHATML}
    words.save_pretrained(tmp_path)
    assert scorer(model=tmp_path, chat_template="other").fingerprint["ending"] == "template"
    other = scorer(model=tmp_path, chat_template="other")
    torch.testing.assert_close(in_order(scored(other)), by_transformers(home / "llama", CHATML), **tol.FLOAT32)


def test_chatml_spells_what_it_says():
    from keel.bench.scorer_templates import with_template
    from keel.data.chat import template

    words = tiny.tokenizer()
    words.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    text = words.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True,
                                     chat_template=with_template(words, "chatml").chat_template)
    assert text == ("<|im_start|>user\nhello ?<|im_end|>\n<|im_start|>assistant\nyes .<|im_end|>\n"
                    "<|im_start|>user\nwhy the cat<|im_end|>\n<|im_start|>assistant\n")
    assert words.decode(template(words).response_ids("no")) == "no <|im_end|>"


def test_a_bare_text_is_continued_without_a_template(home):
    from transformers import AutoModelForSequenceClassification

    found, one = scorer(model=home / "llama"), asked("the cat", "sat .")
    model = AutoModelForSequenceClassification.from_pretrained(home / "llama").eval()
    ids = load_tokenizer(str(home / "llama"))("<bos>the cat sat .<eos>").input_ids
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0].double()
    torch.testing.assert_close(in_order(scored(found, [one]), [one]), expected, **tol.FLOAT32)


def test_a_lora_reward_model_on_its_trunk(home, tmp_path):
    trunk = str(home / "llama-trunk")
    model = scalar_model(ModelConfig(path=trunk, lora=LoraSettings(rank=2)), seed=5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.05)
    save_model(model, load_tokenizer(trunk), tmp_path / "rm", pad_id=0)
    found = scorer(model=trunk, adapter=str(tmp_path / "rm" / "adapter"))
    torch.testing.assert_close(in_order(scored(found)), in_order(scored(scorer(model=tmp_path / "rm"))), **tol.FLOAT32)
    assert found.fingerprint["model"]["adapter"] and found.fingerprint["ending"] == "turn" and found.name == "rm"


# --- implicit rewards ------------------------------------------------------------------------------------------------


def logprob_loop(folder, one):
    """log p(response | prompt) token by token in float64, and how many tokens that is."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    words = load_tokenizer(str(folder))
    prompt, response = SOURCE[one.id]
    head = words.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    before = words(head, add_special_tokens=False).input_ids
    ids = [*before, *words(response, add_special_tokens=False).input_ids, words.eos_token_id]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    total = 0.0
    for t in range(len(before), len(ids)):
        row = logits[t - 1].tolist()
        total += row[ids[t]] - math.log(math.fsum(math.exp(x) for x in row))
    return total, len(ids) - len(before)


def test_the_implicit_reward_is_the_log_ratio(home):
    rows = ASKED[::3]
    summed, mean, free = (scored(scorer(policy=home / "policy", micro_tokens=60, **how), rows) for how in (
        {"reference": home / "reference"}, {"reference": home / "reference", "normalise": "mean"}, {}))
    for one in rows:
        (policy, n), (reference, _) = (logprob_loop(home / name, one) for name in ("policy", "reference"))
        assert summed[one.id] == pytest.approx(policy - reference, abs=tol.LOG_RATIO)
        assert mean[one.id] == pytest.approx((policy - reference) / n, abs=tol.LOG_RATIO)
        assert free[one.id] == pytest.approx(policy, abs=tol.LOG_RATIO)


def test_what_an_implicit_reward_is_called(home):
    both = scorer(policy=home / "policy", reference=home / "reference")
    free = scorer(policy=home / "policy")
    assert (both.name, free.name) == ("policy (DPO)", "policy (reference-free)")
    assert both.fingerprint["kind"] == "implicit DPO reward" and free.fingerprint["reference"] is None
    assert free.fingerprint["kind"] == "log-probability (reference-free)" and both.fingerprint["ending"] == "turn"


def test_policy_and_reference_must_number_tokens_alike(home, tmp_path):
    shutil.copytree(home / "reference", tmp_path, dirs_exist_ok=True)
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace('"yes": 12', '"yes": 13').replace('"no": 13', '"no": 12'))
    with pytest.raises(ModelError, match="policy and reference number 2 tokens differently; the first is 'no'"):
        scorer(policy=home / "policy", reference=tmp_path)


# --- too long --------------------------------------------------------------------------------------------------------


def test_by_default_a_row_is_as_long_as_the_model_can_read(home):
    found = scorer(model=home / "llama")
    rows = [asked(TALK, "no " * 300), asked(TALK, "no " * 50)]
    assert found.fingerprint["max_length"] == 128 and all(math.isfinite(x) for x in scored(found, rows).values())
    assert found.counts == {"rows: response cut": 1, "rows: whole": 1}
    assert [len(found._planned[one.id][0]) for one in rows] == [128, 50 + 16]
    with pytest.raises(ConfigError, match="max_length=129 is beyond the model's context of 128 tokens"):
        scorer(model=home / "llama", max_length=129)


@pytest.mark.parametrize(("too_long", "counts"), [
    ("keep_response", {"rows: fewer turns": 1, "rows: prompt cut": 1, "rows: response cut": 1, "rows: whole": 1}),
    ("truncate_left", {"rows: no room": 1, "rows: prompt cut": 2, "rows: whole": 1}),
    ("truncate_response", {"rows: no room": 1, "rows: response cut": 2, "rows: whole": 1}),
])
def test_what_was_cut_is_counted(home, too_long, counts):
    user = [{"role": "user", "content": "the cat sat on the red dog why why why why why why"}]
    rows = [asked(TALK, "yes " * 7), asked(user, "no " * 5), asked(TALK[:1], "no " * 30), asked(TALK[:1], "no")]
    found = scorer(model=home / "llama", max_length=16, too_long=too_long)
    scores = scored(found, rows)
    assert found.counts == counts
    assert {f"rows: {found.flagged.get(one.id, 'whole')}" for one in rows} == set(counts)
    assert all(math.isnan(scores[one.id]) == (found.flagged.get(one.id) == "no room") for one in rows)
    assert sum(map(math.isnan, scores.values())) == counts.get("rows: no room", 0)


def test_an_error_names_what_is_too_long(home):
    with pytest.raises(DataError, match="15 tokens of prompt and 10 of response do not fit into 16"):
        scorer(model=home / "llama", max_length=16, too_long="error").plan([asked(TALK, "no " * 9)])


def test_half_a_character_is_no_text(home):
    found = scorer(model=home / "llama")
    rows = [asked(TALK, "no \ud83d"), asked([{"role": "user", "content": "\ud83d"}], "no"), asked("\ud83d", "no"),
            asked(TALK, "no \U0001f600")]
    scores = scored(found, rows)
    assert found.counts == {"rows: not Unicode": 3, "rows: whole": 1}
    assert [one.id for one in rows if math.isfinite(scores[one.id])] == [rows[3].id]
    assert found.flagged == {one.id: "not Unicode" for one in rows[:3]}
    found.plan(rows[3:])
    assert found.flagged == {}


# --- fingerprints ----------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_of_what_a_model_is_not_of_where_it_lies(home, tmp_path):
    before = scorer(model=home / "llama").fingerprint
    shutil.copytree(home / "llama", tmp_path / "moved")
    assert scorer(model=tmp_path / "moved", name="other").fingerprint == before
    json.dumps(before)


def test_a_probability_is_a_score_of_its_own_and_other_fingerprints_stay_as_they_were(home, tmp_path):
    shutil.copytree(home / "llama", tmp_path, dirs_exist_ok=True)
    model = scalar_model(ModelConfig(path=str(home / "llama-trunk")), n_labels=2, seed=5)
    model.config.pad_token_id = None
    model.save_pretrained(tmp_path)
    found, difference = scorer(model=tmp_path, probability=True), scorer(model=tmp_path)
    assert found.fingerprint == {**difference.fingerprint, "probability": True}
    # Of two labels the softmax is the sigmoid of the difference of the logits.
    torch.testing.assert_close(in_order(scored(found)), in_order(scored(difference)).sigmoid(), **tol.FLOAT32)


@pytest.mark.parametrize("change", [
    {"max_length": 64}, {"too_long": "error"}, {"chat_template": "plain"}, {"ending": "turn"}, {"micro_tokens": 64},
    {"label_weights": [2.0]}, {"model": {"dtype": "bfloat16"}}, {"model": {"autocast": True}}, {"weights": 1},
])
def test_whatever_can_change_a_score_changes_the_fingerprint(home, tmp_path, change):
    before, folder = scorer(model=home / "llama").fingerprint, home / "llama"
    if "weights" in change:
        folder = tmp_path
        shutil.copytree(home / "llama", folder, dirs_exist_ok=True)
        model = scalar_model(ModelConfig(path=str(folder)))
        model.score.weight.data[0, 0] += 1
        model.save_pretrained(folder)
        change = {}
    settings = {"model": {"path": str(folder), **change.pop("model", {})}} | change
    found = load_scorer(ScorerConfig.checked(settings))
    assert found.fingerprint != before
    assert found.resolution == (2.0 ** -7 if "bfloat16" in str(settings) or "autocast" in str(settings) else 2.0 ** -23)
