"""Broken models and tokenizers, and good ones in the wrong place: one message, exit code 4 (3 where it is the data)."""

import json
import shutil

import pytest
import tiny
from broken.kitchen import EXIT, one_message, refused, served


def changed(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def retold(kitchen, chat_template, source=None):
    """A model whose tokenizer has another chat template."""
    folder = kitchen.model(source)
    (folder / "chat_template.jinja").unlink()
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    return folder


def refused_by_all(kitchen, spoil, capsys, *fragments):
    """As policy, trunk and reward model, in every recipe; the message names the folder."""
    base, reward = kitchen.model(), kitchen.model(kitchen.reward, "spoiled_reward")
    spoil(base)
    spoil(reward)
    for command, folder in ((kitchen.sft(model=base), base), (kitchen.reward_model(model=base), base),
                            (kitchen.ppo(policy=base), base), (kitchen.ppo(reward_model=reward), reward),
                            (kitchen.generate(model=base), base)):
        refused(kitchen, command, capsys, "ModelError", str(folder), *fragments)
        shutil.rmtree(kitchen.out)


def test_no_such_folder(kitchen, capsys):
    refused_by_all(kitchen, shutil.rmtree, capsys, "no such model folder", "Give a folder with config.json")


def test_a_folder_without_a_model(kitchen, capsys):
    def spoil(folder):
        (folder / "config.json").unlink()
        (folder / "tokenizer.json").unlink()

    refused_by_all(kitchen, spoil, capsys, "no model in this folder")


def test_a_folder_without_weights(kitchen, capsys):
    refused_by_all(kitchen, lambda folder: (folder / "model.safetensors").unlink(), capsys, "model.safetensors",
                   "keel reads safetensors only")


def test_pickled_weights_are_never_opened(kitchen, capsys):
    def spoil(folder):
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(f"cos\nsystem\n(S'touch {kitchen.folder}/opened'\ntR.".encode())

    refused_by_all(kitchen, spoil, capsys, "safetensors", "pickled .bin/.pt weights can run code")
    assert not (kitchen.folder / "opened").exists()


@pytest.mark.parametrize("keep", [0, 5, 100, 3000])
def test_cut_weights(kitchen, capsys, keep):
    def spoil(folder):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:keep])

    refused_by_all(kitchen, spoil, capsys, "cannot load a", "folder is complete")


@pytest.mark.parametrize("name, content", [
    ("config.json", "{"), ("config.json", ""), ("config.json", "[1]"),
                                           ("config.json", '{"model_type": "no-such-type"}'),
    ("tokenizer.json", "{"), ("tokenizer.json", '{"model": 3}'), ("tokenizer_config.json", "{"),
])
def test_a_damaged_description(kitchen, capsys, name, content):
    refused_by_all(kitchen, lambda folder: (folder / name).write_text(content), capsys, "cannot load a")


def test_a_damaged_tokenizer_in_the_data_commands(kitchen, capsys):
    folder = kitchen.model()
    (folder / "tokenizer.json").write_text("{")
    for name in ("check", "show"):
        refused(kitchen, ["data", name, str(kitchen.good("pairs")), "--tokenizer", str(folder)], capsys, "ModelError",
                "cannot load a tokenizer", str(folder))


def test_weights_of_another_shape(kitchen, capsys):
    refused_by_all(kitchen, lambda folder: changed(folder / "config.json", intermediate_size=32), capsys,
                   "cannot load a")


def test_weights_with_a_layer_missing(kitchen, capsys):
    folder = kitchen.model()
    changed(folder / "config.json", num_hidden_layers=3)
    for command in (kitchen.sft(model=folder), kitchen.ppo(policy=folder)):
        refused(kitchen, command, capsys, "ModelError", "weights are missing: model.layers.2.", "more")
        shutil.rmtree(kitchen.out)


def test_a_reward_model_with_a_layer_missing(kitchen, capsys):
    folder = kitchen.model(kitchen.reward)
    changed(folder / "config.json", num_hidden_layers=3)
    refused(kitchen, kitchen.ppo(reward_model=folder), capsys, "ModelError", "weights are missing: model.layers.2.",
            "not a complete model")


def test_a_reward_model_without_its_head(kitchen, capsys):
    from safetensors.torch import load_file, save_file

    folder = kitchen.model(kitchen.reward)
    weights = load_file(folder / "model.safetensors")
    save_file({name: x for name, x in weights.items() if "score" not in name}, folder / "model.safetensors",
              metadata={"format": "pt"})
    for command in (kitchen.ppo(reward_model=folder), kitchen.reward_model(model=folder)):
        refused(kitchen, command, capsys, "ModelError", "weights are missing: score.weight",
                "not a complete reward model")
        shutil.rmtree(kitchen.out)


def test_a_trunk_with_a_layer_missing(kitchen, capsys):
    """Only the head may be new: a layer drawn at random under it would train without a word."""
    folder = kitchen.model()
    changed(folder / "config.json", num_hidden_layers=3)
    refused(kitchen, kitchen.reward_model(model=folder), capsys, "ModelError", "weights are missing: model.layers.2.")


def test_a_classifier_of_two_labels_is_no_reward_model(kitchen, capsys):
    from transformers import LlamaForSequenceClassification

    folder = kitchen.model()
    LlamaForSequenceClassification.from_pretrained(kitchen.base, num_labels=2).save_pretrained(folder)
    for command in (kitchen.ppo(reward_model=folder), kitchen.reward_model(model=folder)):
        refused(kitchen, command, capsys, "ModelError", f"{folder}: this classifier has 2 labels; a reward model has 1")
        shutil.rmtree(kitchen.out)


def test_a_language_model_is_no_reward_model(kitchen, capsys):
    """Its head would be drawn at random: PPO would climb noise, and say nothing."""
    for command in (kitchen.ppo(reward_model=kitchen.base), kitchen.generate(reward_model=kitchen.base)):
        refused(kitchen, command, capsys, "ModelError", f"{kitchen.base}: not a reward model: it has no trained head",
                "keel reward-model")
        shutil.rmtree(kitchen.out)


def test_a_scalar_model_is_not_made_from_a_shape(kitchen, capsys):
    """The shape in `scratch` would be left unread, and the weights at the path taken in silence."""
    for command in (kitchen.ppo(**{"reward_model.init": "scratch"}), kitchen.reward_model(**{"model.init": "scratch"})):
        refused(kitchen, command, capsys, "ModelError", "a reward model or critic is not made from scratch.* settings")
        shutil.rmtree(kitchen.out)


def test_an_encoder_is_no_policy(kitchen, capsys):
    folder = tiny.bert(kitchen.folder / "bert")
    for command in (kitchen.sft(model=folder), kitchen.ppo(policy=folder), kitchen.generate(model=folder)):
        refused(kitchen, command, capsys, "ModelError", str(folder), "not a", "causal language model")
        shutil.rmtree(kitchen.out)


def test_a_reward_model_is_no_policy(kitchen, capsys):
    from transformers import LlamaForSequenceClassification

    source = tiny.llama(kitchen.folder / "source", tied=False)
    folder = kitchen.model(source)
    LlamaForSequenceClassification.from_pretrained(source, num_labels=1).save_pretrained(folder)
    refused(kitchen, kitchen.sft(model=folder), capsys, "ModelError", str(folder),
            "weights are missing: lm_head.weight",
            "reward models have no such head")


def test_an_encoder_is_no_critic(kitchen, capsys):
    folder = tiny.bert(kitchen.folder / "bert")
    refused(kitchen, kitchen.ppo(**{"critic.model": folder}), capsys, "ModelError", "an encoder cannot be a critic",
            "an encoder can be the reward model")


def test_a_critic_with_another_tokenizer(kitchen, capsys):
    folder = retold(kitchen, "{# another #}" + tiny.TEMPLATE, kitchen.reward)
    refused(kitchen, kitchen.ppo(reward_model=folder), capsys, "ModelError", "tokenizer or chat template differs",
            "--critic.model PATH")


def test_no_end_of_sequence(kitchen, capsys):
    folder = retold(kitchen, "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}")
    changed(folder / "tokenizer_config.json", eos_token=None)
    for command in (kitchen.sft(model=folder), kitchen.generate(model=folder)):
        refused(kitchen, command, capsys, "ModelError", f"{folder}: the tokenizer has no end-of-sequence token",
                "Set tokenizer.eos_token")
        shutil.rmtree(kitchen.out)


def test_no_chat_template(kitchen, capsys):
    folder = retold(kitchen, None)
    refused(kitchen, kitchen.sft(model=folder), capsys, "DataError", "the tokenizer has no chat template",
            "as_text = true")


@pytest.mark.parametrize("broken, reason", [
    ("{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}"
     "{{ m['content'] + '<eos>' }}{% endfor %}", "refuses the turns system, user: no system turn here"),
    ("{% for m in messages %}{{ m['content'] }", "refuses the turns user"),
    ("{{ messages[7]['content'] }}", "refuses the turns user"),
])
def test_a_template_that_refuses(kitchen, capsys, broken, reason):
    folder = retold(kitchen, broken)
    asked = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "why ?"}]
    data = tiny.write_rows(kitchen.folder / "d.jsonl",
                           [{"id": f"d{i}", "prompt": asked, "completion": "yes"} for i in range(8)])
    said = refused(kitchen, kitchen.sft(model=folder, data=data), capsys, "DataError", "the chat template of", reason)
    assert "system text into the first user turn" in said


def test_rows_beyond_the_context_of_the_policy(kitchen, capsys):
    options = {"prompts.max_length": 300, "sampling.max_new_tokens": 200}
    refused(kitchen, kitchen.generate(**options), capsys, "ModelError", "the model's context is 128",
            "Lower sampling.max_new_tokens")


def test_a_head_count_that_does_not_divide(kitchen, capsys):
    options = {"model.init": "scratch", "model.scratch.hidden": 16, "model.scratch.heads": 3}
    refused(kitchen, kitchen.sft(**options), capsys, "ModelError",
            "scratch.hidden=16 is not a multiple of scratch.heads=3")


def test_a_device_that_is_not_there(kitchen, capsys):
    for device in ("cuda:99", "gpu"):
        refused(kitchen, kitchen.sft(**{"model.device": device}), capsys, "ModelError",
                f"cannot use the device {device!r}")
        shutil.rmtree(kitchen.out)


def test_adapters_on_modules_that_are_not_there(kitchen, capsys):
    options = {"model.lora.rank": 2, "model.lora.targets": "q_projj"}
    refused(kitchen, kitchen.sft(**options), capsys, "ModelError", "lora.targets: cannot adapt the modules 'q_projj'")


def test_an_encoder_has_no_language_model_term(kitchen, capsys):
    folder = tiny.bert(kitchen.folder / "bert")
    refused(kitchen, kitchen.reward_model(model=folder, lm_coef=1), capsys, "ConfigError",
            "lm_coef > 0 needs a causal trunk")


def test_a_damaged_head_ends_in_record_ids(kitchen, capsys):
    from safetensors.torch import load_file, save_file

    folder = kitchen.model(kitchen.reward)
    weights = load_file(folder / "model.safetensors")
    save_file({name: x * float("nan") if "score" in name else x for name, x in weights.items()},
              folder / "model.safetensors", metadata={"format": "pt"})
    code, said = served(kitchen, kitchen.ppo(reward_model=folder), capsys)
    assert code == EXIT["NumericsError"]
    one_message(said, "NumericsError", "records q", "the reward model's score is not finite")
