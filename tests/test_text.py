"""From prompt to condition: splitting, numbers, warnings, and the encoder against torch's."""

import json
import warnings
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_attention import alive, close, numbers
from torch import nn
from torch.nn import functional as F

from mnistlib.settings import from_dict
from mnistlib.text import (
    TextBlock,
    TextConfig,
    TextEncoder,
    Tokenizer,
    Tokens,
    split,
    vocabulary_of,
)
from mnistlib.types import InputError

WORDS = ("a", "blue", "green", "left", "of", "on", "red", "seven", "three", "7", "七", "红", "色")
CONFIG = TextConfig(WORDS, max_length=8, width=16, heads=2)


# ---- splitting -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a thick red seven", ["a", "thick", "red", "seven"]),
        ("  A Red\tSEVEN,\non blue. ", ["a", "red", "seven", "on", "blue"]),
        ("right-leaning; (thin)", ["right", "leaning", "thin"]),
        ("红色的数字七", ["红", "色", "的", "数", "字", "七"]),
        ("蓝底，一个红色7。", ["蓝", "底", "一", "个", "红", "色", "7"]),
        ("a red 7 and 42", ["a", "red", "7", "and", "4", "2"]),
        ("red7色blue", ["red", "7", "色", "blue"]),
        ("ｒｅｄ　７！", ["red", "7"]),
        ("〇零", ["〇", "零"]),
        ("naïve Straße", ["naïve", "strasse"]),
        ("red_seven + 🙂", ["red", "seven", "+", "🙂"]),
        ("a\u200bred\ufeff ❤\ufe0f", ["a", "red", "❤"]),
        ("", []),
        (" ,。! ", []),
    ],
)
def test_split(text, words):
    assert split(text) == words


@given(st.text(max_size=30))
def test_splitting_what_was_split_changes_nothing(text):
    words = split(text)
    assert split(" ".join(words)) == words
    assert all(word and not word.isspace() for word in words)


def test_vocabulary_of_texts():
    assert vocabulary_of(["A red seven", "a 红 seven 7"]) == ("7", "a", "red", "seven", "红")


# ---- numbers -------------------------------------------------------------------------------


def test_tokens_are_start_words_padding():
    """Word number i of the vocabulary has the id i + 2, in the order of the prompt.

    The longest prompt has no padding, however long one may be.
    """
    ids, mask = Tokenizer(WORDS, 6)(["a red seven", "", "红色七 7"])
    assert ids.tolist() == [[1, 2, 8, 9, 0], [1, 0, 0, 0, 0], [1, 13, 14, 12, 11]]
    assert mask.tolist() == [[True] * 4 + [False], [True] + [False] * 4, [True] * 5]
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)


def test_no_prompts_are_no_rows():
    ids, mask = Tokenizer(WORDS, 6)([])
    assert ids.shape == mask.shape == (0, 1)


@pytest.mark.parametrize("prompt", ["", " ", "\t\n"])
def test_the_empty_prompt_is_the_start_alone(prompt):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Tokenizer(WORDS, 4)([prompt]).ids.tolist() == [[1]]


def test_unknown_words_are_named_with_their_neighbours_and_left_out():
    tokenize = Tokenizer(WORDS, 8)
    with pytest.warns(UserWarning, match="left out") as caught:
        ids, _ = tokenize(["a redd sevn", "a 蓝 seven", "a redd seven"])
    assert len(caught) == 1
    assert str(caught[0].message) == (
        "left out, because no training taught them: 'redd' (known and near: red), "
        "'sevn' (known and near: seven), '蓝'"
    )
    assert caught[0].filename == __file__
    assert [row[row > 0].tolist() for row in ids] == [[1, 2], [1, 2, 9], [1, 2, 9]]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("sevn", "the prompt 'sevn' holds no word that this model knows; did you mean seven?"),
        ("greem onn", r"holds no word .* did you mean green, three, on\?"),
        ("qqq", "the prompt 'qqq' holds no word that this model knows$"),
        ("!?", "the prompt '!\\?' holds no word that this model knows$"),
    ],
)
def test_a_prompt_of_unknown_words_is_refused(prompt, message):
    with pytest.raises(InputError, match=message) as error:
        Tokenizer(WORDS, 8)(["a red seven", prompt])
    assert "\n" not in str(error.value)


def test_too_long_a_prompt_is_refused():
    """Exactly as many words as there is room for are fine; words left out do not count."""
    tokenize = Tokenizer(WORDS, 5)
    assert tokenize(["a red 红 7"]).mask.all()
    with pytest.raises(
        InputError, match=r"may hold 4 words .* this one holds 5: 'a red 红 7 seven'"
    ):
        tokenize(["a", "a red 红 7 seven"])
    with pytest.warns(UserWarning, match="qqq"):
        assert tokenize(["a red qqq 红 7"]).mask.all()


def test_a_bare_text_is_not_a_list_of_prompts():
    with pytest.raises(InputError, match=r"give a list of prompts, such as \['a red seven'\]"):
        Tokenizer(WORDS, 8)("a red seven")


# ---- the encoder ---------------------------------------------------------------------------


def as_torch(block, dim, heads):
    """Return torch's pre-norm encoder layer with the same weights."""
    theirs = nn.TransformerEncoderLayer(
        dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    look = block.look
    with torch.no_grad():
        inward = torch.cat([look.q.weight, look.k.weight, look.v.weight])
        theirs.self_attn.in_proj_weight.copy_(inward)
        theirs.self_attn.in_proj_bias.zero_()
    pairs = [
        (theirs.self_attn.out_proj, look.out),
        (theirs.norm1, block.norm1),
        (theirs.norm2, block.norm2),
        (theirs.linear1, block.widen),
        (theirs.linear2, block.narrow),
    ]
    for part, ours in pairs:
        part.load_state_dict(ours.state_dict())
    return theirs


@pytest.mark.parametrize("heads", [1, 4])
def test_block_matches_torchs_layer(heads):
    block, x = alive(TextBlock(16, heads)), numbers(2, 5, 16)
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    with torch.enable_grad():  # torch's fast path for inference would zero what is masked
        expected = as_torch(block, 16, heads)(x, src_key_padding_mask=~mask)
    close(block(x, mask)[mask], expected[mask])


def test_encoder_matches_torchs_layers():
    """Words plus places, the layers, a norm; the start token's output speaks for the prompt."""
    encoder = alive(TextEncoder(CONFIG))
    ids, mask = encoder.tokenize(["a red seven", "", "a red 7 left of a"])
    x = torch.stack([encoder.word.weight[row] for row in ids])
    x = x + torch.stack([encoder.position[place] for place in range(7)])
    for block in encoder.blocks:
        x = as_torch(block, 16, 2)(x, src_key_padding_mask=~mask)
    x = nn.functional.layer_norm(x, (16,), encoder.norm.weight, encoder.norm.bias)
    found = encoder.encode(["a red seven", "", "a red 7 left of a"])
    close(found.tokens[mask], x[mask])
    close(found.vector, x[:, 0])
    assert torch.equal(found.mask, mask)
    assert found.vector.shape == (3, 16)
    assert found.tokens.shape == (3, 7, 16)


def test_padding_never_changes_what_is_said():
    """Neither what the padding holds nor how much there is of it."""
    encoder = alive(TextEncoder(CONFIG))
    ids, mask = encoder.tokenize(["a red seven", ""])
    before = encoder(ids, mask)
    other = encoder(ids.masked_fill(~mask, 5), mask)
    assert torch.equal(before.vector, other.vector)
    assert torch.equal(before.tokens[mask], other.tokens[mask])
    more = encoder(*(F.pad(part, [0, 4]) for part in (ids, mask)))
    close(more.tokens[:, :4][mask], before.tokens[mask])
    close(more.vector, before.vector)


def test_prompts_of_a_batch_do_not_mix():
    """A prompt alone says what it says beside longer ones."""
    encoder, prompts = alive(TextEncoder(CONFIG)), ["a red seven", "", "红色七", "a 7 left of a 七"]
    together = encoder.encode(prompts)
    for i, prompt in enumerate(prompts):
        alone = encoder.encode([prompt])
        assert alone.mask.all()
        close(together.tokens[i, together.mask[i]], alone.tokens[0])
        close(together.vector[i], alone.vector[0])


def test_each_word_and_its_place_matter():
    encoder = alive(TextEncoder(CONFIG))
    prompts = ["", "red", "blue", "red blue", "blue red", "red red"]
    said = encoder.encode(prompts).vector
    apart = torch.cdist(said, said) + torch.eye(len(prompts)) * 9
    assert apart.min() > 0.05


def test_every_parameter_learns():
    encoder = alive(TextEncoder(CONFIG))
    said = encoder.encode(["a blue green left of on red", "seven three 7 七 红 色"])
    (said.vector * numbers(2, 16)).sum().backward()
    idle = [name for name, p in encoder.named_parameters() if not p.grad.any()]
    assert idle == []
    learning = encoder.word.weight.grad.abs().sum(1) > 0
    assert not learning[0], "padding means nothing"
    assert learning[1:].all(), "every word of the prompts, and the start"
    assert (encoder.position.grad.abs().sum(1) > 0).all()


def test_gradients_match_finite_differences():
    block = alive(TextBlock(4, 2)).double()
    mask = torch.tensor([[True, True, True, False]])
    x = numbers(1, 4, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: block(x, mask)[mask], x)


def test_tokens_can_come_from_elsewhere():
    """A batch that was made into numbers before the training says the same."""
    encoder, prompts = alive(TextEncoder(CONFIG)), ["a red seven", ""]
    found = encoder(*encoder.tokenize(prompts))
    assert torch.equal(found.tokens, encoder.encode(prompts).tokens)
    assert isinstance(encoder.tokenize(prompts), Tokens)


# ---- the settings --------------------------------------------------------------------------


def test_configuration_survives_json():
    assert from_dict(TextConfig, json.loads(json.dumps(asdict(CONFIG)))) == CONFIG


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": ()}, "at least one word"),
        ({"vocabulary": ("a", "red", "a")}, "each only once"),
        ({"vocabulary": ("a", "Red")}, r"'Red' is not one word as prompts are split: \['red'\]"),
        ({"vocabulary": ("dark red",)}, "'dark red' is not one word"),
        ({"vocabulary": ("红色",)}, "'红色' is not one word"),
        ({"vocabulary": (",",)}, r"',' is not one word as prompts are split: \[\]"),
        ({"max_length": 1}, "max_length of 2"),
        ({"layers": 0}, "layers and width of 1"),
        ({"heads": 3}, "16 does not divide into 3 heads"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        TextEncoder(replace(CONFIG, **changes))


def test_soft_hyphens_do_not_cut_words():
    assert split("se\u00adven red") == ["seven", "red"]
