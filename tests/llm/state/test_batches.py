"""Padding, packed documents and masks of every form: a row is what its documents are alone."""

from __future__ import annotations

import pytest
import torch
from helpers.models import (
    HYBRID,
    PAD,
    VOCAB,
    adapted,
    base_model,
    error,
    padded,
    system_of,
    tokens,
    with_cache,
    with_random_output,
)
from transformers import DataCollatorWithFlattening, DynamicCache, StaticCache

import hankelred_llm
from hankelred_llm import StateError
from hankelred_llm.state.attention_masks import read_segment_masks

TOLERANCE = 2e-6
LENGTHS = (9, 1, 14, 6)


@pytest.fixture(params=[(None, {}), (8, {}), (None, HYBRID)], ids=["full attention", "window", "hybrid"])
def model(request):
    window, fields = request.param
    return adapted("mistral", base={"sliding_window": window}, **fields)


@pytest.fixture
def documents():
    return [tokens(1, length, seed=10 + length) for length in LENGTHS]


def separate(model, documents):
    with torch.no_grad():
        return torch.cat([model(document).logits for document in documents], 1)


def packed_positions(lengths=LENGTHS):
    return torch.cat([torch.arange(length) for length in lengths])[None]


def block_mask(lengths=LENGTHS):
    """4-D, True where a token may look."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    same = document[:, None] == document[None, :]
    return (same & torch.ones_like(same).tril())[None, None]


def whole_model_oracle(model, ids, keep, reset):
    """The base model in float64, with the adapters as complex recurrences in a loop over tokens."""
    systems = hankelred_llm.get_systems(model)
    base = base_model(sliding_window=model.config.sliding_window).double()

    def add(index):
        log_poles, B, C = (torch.from_numpy(part).to(torch.complex128) for part in systems[index])

        def hook(_, args, out):
            x, y = args[0].to(torch.complex128), torch.zeros_like(out)
            for row in range(x.shape[0]):
                s = torch.zeros_like(log_poles)
                for t in range(x.shape[1]):
                    if reset[row, t]:
                        s = torch.zeros_like(s)
                    if keep[row, t]:
                        s = log_poles.exp() * s + B @ x[row, t]
                    y[row, t] = (C @ s).real
            return out + y

        return hook

    for index, layer in enumerate(base.model.layers):
        layer.mlp.register_forward_hook(add(index))
    with torch.no_grad():
        return base(ids).logits.float()


@pytest.mark.parametrize("eigenvalues", ["complex", "real"])
def test_the_adapter_computes_what_its_systems_say(eigenvalues):
    model, ids = adapted("mistral", eigenvalues=eigenvalues, r=5), tokens(2, 20)
    everywhere = torch.ones_like(ids).bool()
    with torch.no_grad():
        assert error(model(ids).logits, whole_model_oracle(model, ids, everywhere, ~everywhere)) < TOLERANCE


@pytest.mark.parametrize("site", ["mlp", "attention"])
@pytest.mark.parametrize("tap", ["input", "output"])
def test_the_tap_is_where_it_is_said_to_be(site, tap):
    base = base_model()
    layer = base.model.layers[0]
    block = layer.mlp if site == "mlp" else layer.self_attn
    captured = {}

    def before(_, args, kwargs, out):
        captured["input"] = args[0] if args else kwargs["hidden_states"]
        captured["output"] = out[0] if isinstance(out, tuple) else out

    def after(_, args, kwargs, out):
        captured["sum"] = out[0] if isinstance(out, tuple) else out

    block.register_forward_hook(before, with_kwargs=True)
    model = with_random_output(hankelred_llm.attach(base, r=6, site=site, tap=tap)).eval()
    block.register_forward_hook(after, with_kwargs=True)
    with torch.no_grad():
        model(tokens(2, 9))
        y, _ = system_of(model)(captured[tap])
        assert torch.equal(captured["sum"], captured["output"] + y)


@pytest.mark.parametrize("gap", [slice(0, 4), slice(17, 21), slice(6, 10)], ids=["left", "right", "middle"])
@pytest.mark.parametrize("given", ["2-D", "2-D bool", "no positions", "4-D", "4-D float"])
def test_padding_in_every_form(model, gap, given):
    if gap == slice(6, 10) and (given == "no positions" or model.config.sliding_window):
        pytest.skip("the base model counts padding")
    ids = tokens(2, 17)
    batch = padded(ids, gap, 21)
    valid = batch["attention_mask"][0].bool()
    if given == "no positions":
        del batch["position_ids"]
    elif given == "2-D bool":
        batch["attention_mask"] = batch["attention_mask"].bool()
    elif given.startswith("4-D"):
        if model.config.sliding_window:
            pytest.skip("a full mask does not show the window")
        allowed = (torch.ones(21, 21).tril().bool() & valid[None, :]).expand(2, 1, 21, 21)
        lowest = torch.finfo(torch.float32).min
        batch["attention_mask"] = allowed if given == "4-D" else torch.where(allowed, 0.0, lowest)
    with torch.no_grad():
        assert error(model(**batch).logits[:, valid], model(ids).logits) < TOLERANCE


def test_rows_padded_differently():
    model = adapted("mistral", base={"sliding_window": None})
    long, short = tokens(1, 12, seed=3), tokens(1, 7, seed=4)
    ids = torch.full((4, 12), PAD)
    mask = torch.zeros(4, 12, dtype=torch.long)
    places = [
        range(12),
        range(5, 12),
        range(7),
        [0, 1, 4, 5, 6, 9, 10],
    ]
    for row, (source, place) in enumerate(zip([long, short, short, short], places, strict=True)):
        ids[row, list(place)] = source[0]
        mask[row, list(place)] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        together = model(ids, attention_mask=mask, position_ids=positions).logits
        for row, source in enumerate([long, short, short, short]):
            assert error(together[row, mask[row].bool()], model(source).logits[0]) < TOLERANCE


def test_a_hole_in_a_row_without_positions_is_an_identity_step():
    # the base counts the hole, so it is compared with itself on the adapter's own terms
    model = adapted("mistral", base={"sliding_window": None})
    ids, mask = tokens(1, 14), torch.ones(1, 14, dtype=torch.long)
    mask[:, 5:8] = 0
    system = system_of(model)
    captured = []
    handle = system.register_forward_hook(
        lambda _, args, kwargs, out: captured.append((args, kwargs, out)), with_kwargs=True
    )
    with torch.no_grad():
        model(ids, attention_mask=mask)
        handle.remove()
        ((x,), masks, (y, s)) = captured[0]
        assert masks["segment_start"] is None and torch.equal(masks["valid"], mask.bool())
        valid = mask[0].bool()
        assert error(y[:, valid], system(x[:, valid])[0]) < TOLERANCE
        assert torch.equal(s[..., 5:8], s[..., 4:5].expand(-1, -1, 3))


@pytest.mark.parametrize("given", ["position_ids", "cu_seq_lens_q", "seq_idx", "4-D"])
def test_packed_documents_are_separate_documents(model, documents, given):
    row = torch.cat(documents, 1)
    inputs = {"position_ids": packed_positions()}
    if given == "cu_seq_lens_q":
        inputs[given] = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    elif given == "seq_idx":
        inputs[given] = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))[None].int()
    elif given == "4-D":
        if model.config.sliding_window:
            pytest.skip("a full mask does not show the window")
        inputs = {"attention_mask": block_mask()}
    with torch.no_grad():
        assert error(model(row, **inputs, use_cache=False).logits, separate(model, documents)) < TOLERANCE


@pytest.mark.parametrize("given", ["cu_seq_lens_q", "seq_idx"])
def test_document_starts_without_positions(given):
    # no attention of the CPU reads these alone, so the adapter is looked at by itself
    from hankelred_llm.state.attention_masks import read_segment_masks

    named = {
        "cumulative_lengths": torch.tensor([0, *LENGTHS]).cumsum(0) if given == "cu_seq_lens_q" else None,
        "document_ids": torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))[None]
        if given == "seq_idx"
        else None,
    }
    reset = read_segment_masks(
        1, 30, mask=None, positions=None, cache=None, window=None, **named
    ).segment_start
    expected = packed_positions() == 0
    assert torch.equal(reset[:, 1:], expected[:, 1:])


def test_the_flattening_collator(model, documents):
    features = [{"input_ids": document[0].tolist()} for document in documents]
    batch = DataCollatorWithFlattening(return_tensors="pt")(features)
    with torch.no_grad():
        out = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        assert error(out, separate(model, documents)) < TOLERANCE


def test_packed_rows_with_padding_between_and_after(documents):
    model = adapted("mistral", base={"sliding_window": None})
    pieces, positions, keep = [], [], []
    for document in documents:
        length = document.shape[1]
        pieces += [document[0], torch.full((3,), PAD)]
        positions += [torch.arange(length), torch.zeros(3, dtype=torch.long)]
        keep += [torch.ones(length), torch.zeros(3)]
    ids, position_ids, valid = (torch.cat(part)[None] for part in (pieces, positions, keep))
    same = torch.block_diag(*[torch.ones(n + 3, n + 3).tril() for n in LENGTHS]).bool()
    mask = (same & valid[0].bool()[None, :])[None, None]
    with torch.no_grad():
        out = model(ids, attention_mask=mask, position_ids=position_ids).logits[:, valid[0].bool()]
        assert error(out, separate(model, documents)) < TOLERANCE


def test_packed_gradients_are_those_of_separate_documents(model, documents):
    def gradient(batches):
        model.zero_grad()
        for inputs, scale in batches:
            (model(**inputs, use_cache=False).logits.square().sum() * scale).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    row = {"input_ids": torch.cat(documents, 1), "position_ids": packed_positions()}
    together = gradient([(row, 1e-3)])
    apart = gradient([({"input_ids": document}, 1e-3) for document in documents])
    assert error(together / apart.abs().max(), apart / apart.abs().max()) < 1e-5


def test_several_packed_rows(model):
    rows, lengths = tokens(2, 30), [(9, 1, 14, 6), (5, 5, 20)]
    positions = torch.cat([packed_positions(row) for row in lengths])
    with torch.no_grad():
        out = model(rows, position_ids=positions, use_cache=False).logits
        for i, row in enumerate(lengths):
            parts = rows[i : i + 1].split(row, 1)
            assert error(out[i : i + 1], separate(model, parts)) < TOLERANCE


def test_no_bit_of_a_later_document_reaches_an_earlier_one(model):
    first, second = tokens(1, 9), tokens(1, 12, seed=5)
    inputs = {"position_ids": packed_positions((9, 12)), "use_cache": False}
    with torch.no_grad():
        out = [model(torch.cat([first, other], 1), **inputs).logits for other in (second, second.flip(1))]
    assert torch.equal(out[0][:, :9], out[1][:, :9])
    assert not torch.equal(out[0][:, 9:], out[1][:, 9:])


@pytest.mark.parametrize("kind", ["tree", "prefix", "hole"])
def test_masks_that_a_recurrence_cannot_follow_are_refused(kind):
    model, ids = adapted("mistral", base={"sliding_window": None}), tokens(1, 8)
    allowed = torch.ones(8, 8).tril().bool()
    if kind == "tree":  # 5 and 6 are two continuations of 4
        allowed[6, 5] = False
        allowed[7, 5] = False
    elif kind == "prefix":
        allowed[:4, :4] = True
    else:  # what follows the second document looks back at the first
        allowed[4:6, :4] = False
        allowed[6:, 4:6] = False
    with pytest.raises(StateError, match="cannot follow it"):
        model(ids, attention_mask=allowed[None, None])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(1, 8, 8), r"kind \(1, 8, 8\)"),
        (torch.ones(1, 5), "covers 5 tokens, fewer than the 8"),
        ("causal", "kind str"),
    ],
)
def test_masks_that_cannot_be_read_are_refused(mask, message):
    with pytest.raises(StateError, match=message):
        adapted()(tokens(1, 8), attention_mask=mask)


def test_positions_that_cannot_be_read_are_refused():
    with pytest.raises(StateError, match=r"shape \(3, 1, 8\)"):
        adapted()(tokens(1, 8), position_ids=torch.zeros(3, 1, 8, dtype=torch.long))


def test_a_layer_outside_its_model_is_refused():
    mlp = adapted().get_base_model().model.layers[0].mlp
    with pytest.raises(StateError, match="outside the forward pass"):
        mlp(torch.randn(1, 4, 32))


def test_hidden_states_of_another_shape_are_refused():
    model = adapted()
    model.get_base_model().model.layers[0].mlp.register_forward_pre_hook(
        lambda _, args: args[0].flatten(0, 1)
    )
    with pytest.raises(StateError, match=r"\(16, 32\) for a batch of 2 rows of 8 tokens"):
        model(tokens(2, 8))


def test_a_static_cache_with_the_masks_of_generate(model):
    """Generation turns 2-D masks into 4-D ones for static caches: padding is read from those."""
    ids = tokens(2, 17)
    batch = padded(ids, slice(0, 4), 21)
    valid = batch["attention_mask"][0].bool()
    cache = StaticCache(model.config, max_cache_len=32)
    base = model.get_base_model()
    logits = []
    with torch.no_grad():
        for start, end in ((0, 14), (14, 15), (15, 21)):
            inputs = base.prepare_inputs_for_generation(
                batch["input_ids"][:, start:end],
                **with_cache(cache),
                attention_mask=batch["attention_mask"][:, :end],
                is_first_iteration=start == 0,
                use_cache=True,
            )
            inputs.pop("position_ids", None)
            assert inputs["attention_mask"].ndim == 4
            logits.append(base(**inputs).logits)
        assert error(torch.cat(logits, 1)[:, valid], model(ids).logits) < TOLERANCE


def test_chunks_of_packed_rows_go_on_with_a_cache():
    """A document cut by a chunk boundary continues, one that starts in the chunk starts at zero."""
    from hankelred_llm.state.attention_masks import read_segment_masks

    positions = packed_positions()
    chunks = [
        read_segment_masks(
            1,
            10,
            mask=None,
            positions=positions[:, start : start + 10],
            cumulative_lengths=None,
            document_ids=None,
            cache=DynamicCache(),
            window=None,
        ).segment_start
        for start in (0, 10, 20)
    ]
    assert torch.equal(torch.cat(chunks, 1), positions == 0)


def test_only_kept_tokens_are_compared():
    """Packed rows with padding in and between documents, and a 2-D mask."""
    from hankelred_llm.state.attention_masks import read_segment_masks

    positions = torch.tensor([[0, 1, 2, 0, 0, 3, 4, 0, 1, 0, 2, 0], [9, 9, 0, 1, 9, 2, 5, 6, 0, 0, 0, 7]])
    mask = torch.tensor([[1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 1, 0], [0, 0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0]])
    starts = torch.tensor([[1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0]])
    masks = read_segment_masks(
        2,
        12,
        mask=mask,
        positions=positions,
        cumulative_lengths=None,
        document_ids=None,
        cache=None,
        window=None,
    )
    assert torch.equal(masks.valid, mask.bool()) and torch.equal(masks.segment_start, starts.bool())
    # a later call of the same sequence: its first valid token starts no segment unless its position is 0
    later = read_segment_masks(
        2,
        6,
        mask=mask,
        positions=positions[:, 6:],
        cumulative_lengths=None,
        document_ids=None,
        cache=DynamicCache(),
        window=None,
    )
    assert (
        torch.equal(later.segment_start[:, 1:], starts[:, 7:].bool()) and not later.segment_start[:, 0].any()
    )


def test_the_vocabulary_is_as_the_tests_think():
    assert tokens(2, 50).min() > PAD and tokens(2, 50).max() < VOCAB


@pytest.mark.parametrize(("gap", "starts"), [(1, True), (2, True), (3, False), (4, False)])
def test_what_a_window_hides_is_no_document_start(gap, starts):
    # A token that may not look at the kept one before it starts a document, unless the window ends between
    # them; at a distance of exactly the window's width no test told the two apart.
    time, window = 8, 3
    here = torch.arange(time)
    keep = (here == 0) | (here >= gap)
    near = (here[:, None] >= here) & (here[:, None] - here < window) & keep
    near[gap:, 0] = False  # cut off by the mask, or by the window where that is narrower anyway
    masks = read_segment_masks(
        1,
        time,
        mask=near[None, None],
        positions=None,
        cumulative_lengths=None,
        document_ids=None,
        cache=None,
        window=window,
    )
    assert masks.segment_start is not None
    assert bool(masks.segment_start[0, gap]) is starts
    assert not masks.segment_start[0, gap + 1 :].any()
