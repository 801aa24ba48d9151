"""Attention and transformer blocks, held against torch's and diffusers' with the same weights."""

import math

import numpy as np
import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from tiny import alive, numbers
from torch import nn
from torch.nn import functional as F

from mnistlib.attention import Attention, GatedFeedForward, TransformerBlock, attention_maps
from mnistlib.types import InputError

MASK = torch.tensor([[True, True, True, False, False], [True, False, True, True, True]])


def close(found, expected):
    """Assert that two tensors agree up to the rounding of float32."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# ---- attention -----------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_cross_attention_matches_torch(heads, mask):
    """The formula is torch's own; only the projections around it are ours."""
    attend, x, words = alive(Attention(16, heads, 12)), numbers(2, 7, 16), numbers(2, 5, 12, seed=1)
    q, k, v = (
        F.linear(given, part.weight).unflatten(2, (heads, 16 // heads)).transpose(1, 2)
        for given, part in [(x, attend.q), (words, attend.k), (words, attend.v)]
    )
    seen = None if mask is None else mask[:, None, None, :]
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
    close(attend(x, words, mask), F.linear(found, attend.out.weight, attend.out.bias))


def as_torch(attend, dim, context_dim=None):
    """Return torch's layer with the same weights."""
    theirs = nn.MultiheadAttention(
        dim, attend.heads, kdim=context_dim, vdim=context_dim, batch_first=True
    )
    inward = [attend.q.weight, attend.k.weight, attend.v.weight]
    with torch.no_grad():
        if context_dim is None:
            theirs.in_proj_weight.copy_(torch.cat(inward))
        else:
            for name, weight in zip("qkv", inward, strict=True):
                getattr(theirs, f"{name}_proj_weight").copy_(weight)
        theirs.in_proj_bias.zero_()
        theirs.out_proj.load_state_dict(attend.out.state_dict())
    return theirs.eval()


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_both_kinds_match_torchs_layer(heads):
    x, words = numbers(2, 5, 16), numbers(2, 5, 12, seed=1)
    attend = alive(Attention(16, heads))
    found, _ = as_torch(attend, 16)(x, x, x, key_padding_mask=~MASK)
    close(attend(x, mask=MASK), found)
    attend = alive(Attention(16, heads, 12))
    found, _ = as_torch(attend, 16, 12)(x, words, words, key_padding_mask=~MASK)
    close(attend(x, words, MASK), found)


@pytest.mark.parametrize("part", ["attention", "block"])
def test_a_masked_token_is_never_seen(part):
    """Not one bit of the answer depends on it; on every other token each row does depend."""
    part = {"attention": Attention, "block": TransformerBlock}[part]
    attend, x, words = alive(part(16, 2, 12)), numbers(2, 7, 16), numbers(2, 5, 12, seed=1)
    before = attend(x, words, MASK)
    for row in range(2):
        for place in range(5):
            changed = words.clone()
            changed[row, place] += 3
            after = attend(x, changed, MASK)
            assert torch.equal(after[1 - row], before[1 - row])
            assert torch.equal(after[row], before[row]) != MASK[row, place]


def test_the_answer_of_a_query_does_not_depend_on_the_others():
    attend, x, words = alive(Attention(16, 2, 12)), numbers(2, 7, 16), numbers(2, 5, 12, seed=1)
    close(attend(x, words)[:, :3], attend(x[:, :3], words))


def test_words_in_another_order_are_the_same_words():
    """Attention knows no order: what tells first from second is put in by the text encoder."""
    attend, x, words = alive(Attention(16, 2, 12)), numbers(2, 7, 16), numbers(2, 5, 12, seed=1)
    order = torch.tensor([3, 0, 4, 2, 1])
    close(attend(x, words[:, order], MASK[:, order]), attend(x, words, MASK))


def test_one_row_of_words_serves_all():
    attend, x, words = alive(Attention(16, 2, 12)), numbers(3, 7, 16), numbers(1, 5, 12, seed=1)
    found = attend(x, words, MASK[:1])
    close(found, attend(x, words.expand(3, -1, -1), MASK[:1].expand(3, -1)))


def test_attention_refuses_what_it_cannot_do():
    with pytest.raises(InputError, match="16 does not divide into 3 heads"):
        Attention(16, 3)
    with pytest.raises(InputError, match="does not divide into 0 heads"):
        Attention(16, 0)
    with pytest.raises(InputError, match="needs a context to look into"):
        Attention(16, 2, 16)(numbers(2, 7, 16))


# ---- the block -----------------------------------------------------------------------------


def test_gated_feed_forward_equals_the_formula():
    """(W x + b) times GELU of (V x + c), in NumPy, GELU with the error function."""
    think, x = alive(GatedFeedForward(6, expand=2)), numbers(2, 3, 6)
    with torch.no_grad():
        value, gate = np.split(think.widen(x).numpy(), 2, axis=-1)
        gelu = gate * (1 + np.vectorize(math.erf)(gate / math.sqrt(2))) / 2
        close(think(x), think.narrow(torch.from_numpy((value * gelu).astype(np.float32))))


@pytest.mark.parametrize("context_dim", [None, 12])
def test_block_matches_diffusers(context_dim):
    block = alive(TransformerBlock(16, 2, context_dim))
    theirs = BasicTransformerBlock(16, 2, 8, cross_attention_dim=context_dim).eval()
    copies = zip(theirs.state_dict(), block.state_dict().values(), strict=True)
    theirs.load_state_dict(dict(copies))
    x, words = numbers(2, 7, 16), None if context_dim is None else numbers(2, 5, 12, seed=1)
    bias = None if words is None else torch.where(MASK, 0.0, -1e9)[:, None]
    expected = theirs(x, encoder_hidden_states=words, encoder_attention_mask=bias)
    close(block(x, words, None if words is None else MASK), expected)


def test_gradients_match_finite_differences():
    block = alive(TransformerBlock(4, 2, 3)).double()
    x, words = numbers(2, 3, 4, dtype=torch.float64), numbers(2, 5, 3, seed=1, dtype=torch.float64)
    given = (x.requires_grad_(), words.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, words: block(x, words, MASK), given)


# ---- what is looked at ---------------------------------------------------------------------


class TwoBlocks(nn.Module):
    """One block that reads words behind one that does not."""

    def __init__(self):
        super().__init__()
        self.alone, self.told = TransformerBlock(16, 2), TransformerBlock(16, 2, 12)

    def forward(self, x, words, mask):
        return self.told(self.alone(x), words, mask)


def test_attention_maps_are_the_weights():
    """Against those that torch's layer reports, fed with what ours is fed."""
    network, x, words = alive(TwoBlocks()), numbers(2, 7, 16), numbers(2, 5, 12, seed=1)
    with attention_maps(network) as maps:
        network(x, words, MASK)
    assert maps.keys() == {"told.read"}
    found = maps["told.read"]
    assert found.shape == (2, 2, 7, 5)
    assert not found.requires_grad
    close(found.sum(-1), torch.ones(2, 2, 7))
    assert (found.transpose(1, 3)[~MASK] == 0).all()
    block = network.told
    asked = network.alone(x)
    asked = block.norm2(asked + block.look(block.norm1(asked)))
    theirs = as_torch(block.read, 16, 12)
    _, expected = theirs(asked, words, words, key_padding_mask=~MASK, average_attn_weights=False)
    close(found, expected.detach())


def test_attention_maps_hold_the_latest_call():
    network, words = alive(TwoBlocks()), numbers(2, 5, 12, seed=1)
    with attention_maps(network) as maps:
        assert maps == {}
        network(numbers(2, 7, 16), words, MASK)
        first = maps["told.read"]
        network(numbers(2, 7, 16, seed=2), words, MASK)
        second = maps["told.read"]
    network(numbers(2, 7, 16), words, MASK)  # nobody watches any more
    assert not torch.equal(first, second)
    assert maps["told.read"] is second


def test_watching_changes_nothing_and_leaves_nothing():
    network, x, words = alive(TwoBlocks()), numbers(2, 7, 16), numbers(2, 5, 12, seed=1)
    before = network(x, words, MASK)
    with attention_maps(network):
        assert torch.equal(network(x, words, MASK), before)
    assert all(not part._forward_hooks for part in network.modules())
    with pytest.raises(RuntimeError, match="shape"), attention_maps(network):
        network(x, x, MASK)  # of another width than words: fails while somebody watches
    assert all(not part._forward_hooks for part in network.modules())


def test_a_network_without_words_has_no_maps():
    with pytest.raises(InputError, match="no cross-attention to watch"):
        attention_maps(TransformerBlock(16, 2)).__enter__()
