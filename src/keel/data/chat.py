"""A tokenizer and its chat template as one thing: the only caller of the template in keel.

Training rows, rollouts and scoring rows of a conversation are `prompt_ids(prompt) + response_ids(response)`, hence the
same tokens everywhere.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from keel.data.records import Message, Prompt
from keel.errors import DataError, ModelError

__all__ = ["Template", "template", "tokenizer_from"]

_PROBE = "probe"
# Stands for a control token that is spelled out in somebody's text, while the template runs over it.
_SPELLED_OUT = "\ue0f3"
_SEPARATED = ("{{ cls_token }}{% for turn in messages %}{{ turn.role }}: {{ turn.content }}{{ sep_token }}{% endfor %}"
              "{% if add_generation_prompt %}assistant: {% endif %}")


@dataclass(frozen=True)
class Template:
    """How this tokenizer spells a conversation.

    Attributes:
        tokenizer: the Hugging Face tokenizer.
        end_id: the token that the template writes behind an assistant's turn; without a template, end of sequence.
        stop_ids: every token that ends a response, `end_id` first.
        pad_id: fills rows; never a token that ends one, so that no mask has to be guessed from ids.
        lead: text between the open assistant turn and the response, e.g. a space.
        trims: True where the template strips the whitespace around an assistant's turn.
        closing: all the text that the template writes behind an assistant's last turn. What it writes before the token
            that ends the turn (Llama 2: a space) and behind it (ChatML: a line break) is read by reward models that
            were trained on whole templates.
    """

    tokenizer: Any
    end_id: int
    stop_ids: tuple[int, ...]
    pad_id: int
    lead: str = ""
    trims: bool = False
    closing: str = ""

    @property
    def start_id(self) -> int | None:
        """The token that begins rows, where there is one: begin-of-sequence, or that at which encoders are read."""
        bos, cls = self.tokenizer.bos_token_id, self.tokenizer.cls_token_id
        return cls if bos is None else bos

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The conversation with the assistant's turn left open; or the plain text; `start_id` exactly once.

        Raises:
            DataError: the tokenizer has no chat template, or its template refuses the conversation.
        """
        if prompt.text is not None:
            ids = _encode(self.tokenizer, prompt.text)
            # A row never begins with the response: without a token to begin with, the end of the row before serves.
            start = self.end_id if self.start_id is None else self.start_id
            return [start, *ids] if ids[:1] != [start] else ids
        return self.one_bos(self._rendered(prompt))

    def response_ids(self, response: str, ended: bool = True, after: str | None = None) -> list[int]:
        """The response as the assistant writes it, then the end of its turn.

        Args:
            response: its text; control tokens spelled out in it stay text.
            ended: False where the response was cut and nothing ends it.
            after: the plain text that it continues (`prompt.text`); None in a conversation.
        """
        if after is None:
            # What was cut goes on: a template strips the end of a turn that has one.
            kept = response.strip() if ended else response.lstrip()
            ids = self._led(kept if self.trims else response)
        else:
            ids = self._continued(after, response)
        return [*ids, self.end_id] if ended else ids

    def closed_ids(self, response: str) -> list[int]:
        """The response and `closing`, as the tokenizer splits them in a conversation that is one text."""
        kept = response.strip() if self.trims else response
        if self.control.search(kept) is None:
            return _encode(self.tokenizer, self.lead + kept + self.closing)
        return self._led(kept) + _encode(self.tokenizer, self.closing)

    def many_response_ids(self, responses: Sequence[str], *, closed: bool) -> list[list[int]]:
        """`response_ids` of responses in conversations, or `closed_ids`, in one call of the tokenizer.

        It is cheaper than a call each, and takes as many threads as there are cores (TOKENIZERS_PARALLELISM).
        """
        kept = [text.strip() if self.trims else text for text in responses]
        bare = [self.control.search(text) is None for text in kept]
        found = iter(_encode_all(self.tokenizer, [self.lead + text + (self.closing if closed else "")
                                                  for text, alone in zip(kept, bare, strict=True) if alone]))
        one = self.closed_ids if closed else self.response_ids
        ending = [] if closed else [self.end_id]
        return [[*next(found), *ending] if alone else one(text) for text, alone in zip(responses, bare, strict=True)]

    def decode(self, ids: list[int]) -> str:
        """The text of a response, up to the token that ends it and without control tokens."""
        stop = next((i for i, token in enumerate(ids) if token in self.stop_ids), len(ids))
        text = self.tokenizer.decode(ids[:stop], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).removeprefix(self.lead)

    def written(self, turns: Sequence[Message], record_id: str) -> str:
        """The text that the template makes of a whole conversation, no turn left open.

        Raises:
            DataError: the tokenizer has no chat template, or its template refuses the conversation.
        """
        return _render(self.tokenizer, list(turns), record_id, opened=False)

    @cached_property
    def control(self) -> re.Pattern[str]:
        """Finds control tokens that are spelled out in a text."""
        longest_first = sorted(_controls(self.tokenizer), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @cached_property
    def _writes_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer(_PROBE).input_ids[:1] == [bos]

    def one_bos(self, ids: list[int]) -> list[int]:
        """The same with one begin-of-sequence token in front, where the tokenizer or the template writes any."""
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return ids
        n_bos = next((i for i, token in enumerate(ids) if token != bos), len(ids))
        return [bos, *ids[n_bos:]] if n_bos or self._writes_bos else ids

    def _led(self, response: str) -> list[int]:
        """Tokens of the lead and the response. Only the lead, which is the template's, may hold control tokens."""
        if self.control.search(response) is None:
            return _encode(self.tokenizer, self.lead + response)
        if self.control.search(self.lead) is None:
            return _encode(self.tokenizer, self.lead + response, plain=True)
        return _encode(self.tokenizer, self.lead) + _encode(self.tokenizer, response, plain=True)

    def _plain(self, text: str) -> list[int]:
        """Tokens of a text in which no control token is recognised."""
        return _encode(self.tokenizer, text, plain=self.control.search(text) is not None)

    def _continued(self, text: str, response: str) -> list[int]:
        """Tokens of the response in its place behind the text, where the tokenizer lets the two be parted."""
        before, whole = self._plain(text), self._plain(text + response)
        return whole[len(before):] if text and whole[:len(before)] == before else self._plain(response)

    def _rendered(self, prompt: Prompt) -> list[int]:
        found: list[str] = []

        def hide(match: re.Match[str]) -> str:
            found.append(match.group())
            return _SPELLED_OUT

        turns = [Message(turn.role, self.control.sub(hide, turn.content)) for turn in prompt.messages]
        text = _render(self.tokenizer, turns, prompt.id)
        if not found:
            return _encode(self.tokenizer, text)
        pieces = text.split(_SPELLED_OUT)
        ids = _encode(self.tokenizer, pieces[0])
        for spelled, piece in zip(found, pieces[1:], strict=False):
            ids += _encode(self.tokenizer, spelled, plain=True) + (_encode(self.tokenizer, piece) if piece else [])
        return ids


def template(tokenizer: Any) -> Template:
    """Find out how a tokenizer's chat template opens and ends an assistant's turn.

    The tokenizer of an encoder (BERT and its kin) has none; it is given one, which is saved with it: every turn as
    `role: text`, its classification token in front and its separator behind each.

    Raises:
        ModelError: nothing ends a response: no end-of-sequence token, and none in the template.
    """
    if tokenizer.chat_template is None and None not in (tokenizer.cls_token, tokenizer.sep_token):
        tokenizer.chat_template = _SEPARATED
    lead, trims, end_id, closing = "", False, tokenizer.eos_token_id, ""
    if tokenizer.chat_template is not None:
        lead, trims, closing = _probe(tokenizer)
        written = _encode(tokenizer, closing.lstrip())
        if written and written[0] in _controls(tokenizer).values():
            end_id = written[0]
    if end_id is None:
        raise ModelError("the tokenizer has no end-of-sequence token, and its chat template writes none",
                         where=_name(tokenizer),
                         remedy="Set tokenizer.eos_token to the token that ends a turn and save the tokenizer again.")
    eos = tokenizer.eos_token_id
    stop_ids = (end_id,) if eos in (None, end_id) else (end_id, eos)
    return Template(tokenizer, end_id, stop_ids, _pad_id(tokenizer, stop_ids), lead, trims, closing)


def tokenizer_from(folder: str) -> Any:
    """The tokenizer of a model folder or of a hub name.

    Raises:
        ModelError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot load a tokenizer: {first}", where=folder,
                         remedy="Give a folder with tokenizer.json and tokenizer_config.json.") from error


def _probe(tokenizer: Any) -> tuple[str, bool, str]:
    """What the template writes before a response, whether it strips the response, and what it writes behind it."""
    asked = [Message("user", "hello")]
    opened = _render(tokenizer, asked, "probe")
    whole = _render(tokenizer, [*asked, Message("assistant", _PROBE)], "probe", opened=False)
    padded = _render(tokenizer, [*asked, Message("assistant", f" {_PROBE} ")], "probe", opened=False)
    at = whole.rfind(_PROBE)
    if at < 0:
        return "", False, ""
    lead = whole[len(opened):at] if whole.startswith(opened) else ""
    # A tokenizer that puts a space before every text brings the lead along; then it must not be written twice.
    before, joined = _encode(tokenizer, opened), _encode(tokenizer, whole[:at + len(_PROBE)])
    bare_fits = joined == before + _encode(tokenizer, _PROBE)
    return "" if bare_fits else lead, whole == padded, whole[at + len(_PROBE):]


def _render(tokenizer: Any, turns: list[Message], record_id: str, opened: bool = True) -> str:
    from jinja2.exceptions import TemplateError

    if tokenizer.chat_template is None:
        raise DataError("the prompt is a conversation, but the tokenizer has no chat template", where=f"id {record_id}",
                        remedy=f"Give {_name(tokenizer)} one (set tokenizer.chat_template, save_pretrained), or store "
                               "prompts as strings and read them with as_text = true.")
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened))
    except (TemplateError, ValueError, TypeError) as error:
        roles = ", ".join(turn.role for turn in turns)
        raise DataError(f"the chat template of {_name(tokenizer)} refuses the turns {roles}: {error}",
                        where=f"id {record_id}",
                        remedy="Many templates take no system turn, or want user and assistant to alternate. Move the "
                               "system text into the first user turn, or change the tokenizer's template.") from error


def _encode(tokenizer: Any, text: str, plain: bool = False) -> list[int]:
    return _encode_all(tokenizer, [text], plain)[0]


def _encode_all(tokenizer: Any, texts: list[str], plain: bool = False) -> list[list[int]]:
    if not texts:
        return []
    # Not verbose: the tokenizer would warn of rows beyond its model_max_length, which `render.fit` shortens anyway.
    told = tokenizer(texts, add_special_tokens=False, split_special_tokens=plain, verbose=False)
    return list(told.input_ids)


def _controls(tokenizer: Any) -> dict[str, int]:
    """Control tokens by their spelling."""
    added = {str(token.content): index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return added | {str(token): index for token, index in named}


def _pad_id(tokenizer: Any, stop_ids: tuple[int, ...]) -> int:
    """The tokenizer's padding unless that ends rows (GPT-2 style pad = eos teaches a model never to stop)."""
    candidates = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, *range(len(stop_ids) + 1))
    return next(token for token in candidates if token is not None and token not in stop_ids)


def _name(tokenizer: Any) -> str:
    return str(tokenizer.name_or_path or "the tokenizer")
