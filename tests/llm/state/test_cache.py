"""The recurrent state in the cache: generation computes what the full pass computes, or is refused."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.models import (
    HYBRID,
    PAD,
    adapted,
    base_model,
    cache_of,
    error,
    padded,
    step_by_step,
    system_of,
    tokens,
    with_cache,
    with_random_output,
)
from torch.nn.utils import parametrize, prune, weight_norm
from transformers import (
    ContinuousBatchingConfig,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    StaticCache,
)
from transformers.cache_utils import QuantizedCache

import hankelred_llm
from hankelred_llm import StateError
from hankelred_llm.state import forward_context
from hankelred_llm.state.cache import CROPPABLE_TOKENS, HRMState, open_state

TOLERANCE = 2e-6
WINDOWS = [None, 8]
KINDS = [
    {},
    {"eigenvalues": "real"},
    {"tap": "output", "r": 5},
    {"site": "attention"},
    {"site": "attention", "tap": "output", "eigenvalues": "real"},
    HYBRID,
]


def model_of(window=None, **fields):
    return adapted("mistral", base={"sliding_window": window}, **fields)


def states(cache):
    return next(layer for layer in cache.layers if isinstance(layer, HRMState))


@pytest.fixture(params=[(None, {}), (8, {}), (None, HYBRID)], ids=["full attention", "window", "hybrid"])
def model(request):
    window, fields = request.param
    return model_of(window, **fields)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("fields", KINDS, ids=lambda fields: "hybrid" if fields is HYBRID else str(fields))
@pytest.mark.parametrize("size", [1, 5])
def test_pieces_are_the_full_pass(window, fields, size):
    model, ids = model_of(window, **fields), tokens(2, 20)
    with torch.no_grad():
        full = model(ids).logits
    assert error(step_by_step(model, ids, size=size), full) < TOLERANCE


@pytest.mark.parametrize("kind", ["lazy", "configured", "static", "inside", "quantized"])
def test_every_cache(model, kind):
    ids, config = tokens(2, 20), model.config
    if kind == "quantized":
        if config.sliding_window is not None:
            pytest.skip("transformers has no quantized cache for windows")
        cache = quantized_cache(config)
    else:
        cache = {
            "lazy": DynamicCache,
            "configured": lambda: DynamicCache(config=config),
            "static": lambda: StaticCache(config, max_cache_len=24),
            "inside": lambda: None,
        }[kind]()
    with torch.no_grad():
        full = model(ids).logits
    # keys and values lose digits in a quantized cache, the state does not
    assert error(step_by_step(model, ids, cache=cache), full) < (0.05 if kind == "quantized" else TOLERANCE)


def quantized_cache(config):
    try:
        return QuantizedCache("fp8", config)
    except ValueError as error:
        if "Unknown quantization backend" not in str(error):
            raise
        pytest.skip("the quantized caches of this transformers need packages of their own")


def test_masks_are_not_made_from_the_states(model):
    # a model with both kinds of masks, all of whose layers slide, asked the adapter's entry for the size of
    # its keys: it was the only layer in the cache that did not slide
    cache = DynamicCache(config=model.config)
    sliding = cache.is_sliding[0]
    with torch.no_grad():
        model(tokens(2, 6), **with_cache(cache))
    assert len(set(cache.is_sliding)) == 1 and cache.is_sliding[0] == sliding
    assert cache.get_mask_sizes(1, cache.is_sliding.index(sliding))[0] == 7
    assert cache.get_max_length() in (-1, getattr(model.config, "sliding_window", None))


def test_an_offloaded_cache_goes_round(model):
    # before 5.23 transformers took the states for the layer to fetch after the last one, so that the keys of
    # the first layer stayed away from the device they were needed on
    cache = DynamicCache(config=model.config)
    cache.offloading, cache.only_non_sliding = True, False
    open_state(cache, length=0, n_layers=len(cache.layers))
    cache.prefetch_stream, fetched = contextlib.nullcontext(), []
    cache.layers[0].prefetch = lambda: fetched.append(0)
    cache.prefetch(2, only_non_sliding=False)
    assert fetched == [0]


def test_a_quantized_cache_keeps_the_state_exact():
    model, ids, cache = model_of(), tokens(2, 12), None
    cache, inputs, outputs = quantized_cache(model.config), [], []
    system = system_of(model)

    def record(_, args, out):
        inputs.append(args[0])
        outputs.append(out[0])

    with torch.no_grad():
        with system.register_forward_hook(record):
            step_by_step(model, ids, cache=cache)
        assert error(torch.cat(outputs, 1), system(torch.cat(inputs, 1))[0]) < TOLERANCE


def test_generate_is_the_full_pass(model):
    ids = tokens(2, 9)
    out = model.generate(
        ids,
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    with torch.no_grad():
        full = model(out.sequences).logits
    assert error(torch.stack(out.logits, 1), full[:, 8:-1]) < TOLERANCE


def test_generate_on_padded_rows(model):
    rows = [tokens(1, 9, seed=3), tokens(1, 5, seed=4)]
    alone = [model.generate(row, max_new_tokens=8, min_new_tokens=8, do_sample=False)[0, -8:] for row in rows]
    ids = torch.cat([rows[0], torch.nn.functional.pad(rows[1], (4, 0), value=PAD)])
    for implementation in (None, "static"):
        both = model.generate(
            ids,
            attention_mask=(ids != PAD).long(),
            max_new_tokens=8,
            min_new_tokens=8,
            do_sample=False,
            cache_implementation=implementation,
        )
        assert torch.equal(both[:, -8:], torch.stack(alone))


def test_generate_in_chunks_of_the_prompt(model):
    ids = tokens(2, 20)
    whole = model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert torch.equal(
        whole, model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False, prefill_chunk_size=7)
    )


def test_generate_from_embeddings(model):
    ids = tokens(2, 9)
    from_ids = model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    embeddings = model.get_input_embeddings()(ids)
    from_embeddings = model.generate(
        inputs_embeds=embeddings, max_new_tokens=6, min_new_tokens=6, do_sample=False
    )
    assert torch.equal(from_ids[:, 9:], from_embeddings)


def test_beam_search_is_beam_search_without_cache(model):
    ids = tokens(2, 9)
    options = {"num_beams": 4, "max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False}
    options.update(num_return_sequences=2, output_scores=True, return_dict_in_generate=True)
    cached, plain = model.generate(ids, **options), model.generate(ids, **options, use_cache=False)
    assert torch.equal(cached.sequences, plain.sequences)
    assert error(cached.sequences_scores, plain.sequences_scores) < TOLERANCE


def test_sampled_rows_go_their_own_ways(model):
    ids = tokens(2, 9)
    torch.manual_seed(0)
    out = model.generate(
        ids,
        num_return_sequences=3,
        do_sample=True,
        max_new_tokens=8,
        min_new_tokens=8,
        output_logits=True,
        return_dict_in_generate=True,
    )
    with torch.no_grad():
        full = model(out.sequences).logits
    assert error(torch.stack(out.logits, 1), full[:, 8:-1]) < TOLERANCE


def test_prompt_lookup_and_assisted_decoding(model):
    ids = tokens(1, 4).repeat(1, 5)
    options = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False}
    greedy = model.generate(ids, **options)
    assert torch.equal(greedy, model.generate(ids, **options, prompt_lookup_num_tokens=10))
    # drafts longer than the tail that is always kept
    assert torch.equal(greedy, model.generate(ids, **options, prompt_lookup_num_tokens=CROPPABLE_TOKENS + 30))
    assistant = with_random_output(model_of(model.config.sliding_window), seed=5)
    assert torch.equal(greedy, model.generate(ids, **options, assistant_model=assistant))


def test_drafts_longer_than_the_tail(model):
    # transformers announces that it will crop before there are states in the cache, so drafts of more than 64
    # tokens ended in an error in the middle of an answer
    ids = tokens(1, 110).repeat(1, 2)
    options = {"max_new_tokens": 150, "min_new_tokens": 150, "do_sample": False}
    greedy = model.generate(ids, **options)
    crops, crop = [], HRMState.crop
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HRMState, "crop", lambda self, n: (crops.append(-int(n)), crop(self, n)))
        assert torch.equal(
            greedy, model.generate(ids, **options, prompt_lookup_num_tokens=CROPPABLE_TOKENS + 40)
        )
    assert max(crops) > CROPPABLE_TOKENS


def test_drafts_with_a_static_cache_are_refused():
    # before 5.24 by transformers itself
    with pytest.raises((StateError, ValueError), match=r"cannot be cropped|Static cache"):
        model_of().generate(
            tokens(1, 4).repeat(1, 5),
            max_new_tokens=9,
            cache_implementation="static",
            prompt_lookup_num_tokens=3,
        )


def test_a_conversation_goes_on_with_its_cache(model):
    first, second = tokens(2, 9), tokens(2, 5, seed=8)
    cache = DynamicCache(config=model.config)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    turn = torch.cat([model.generate(first, **with_cache(cache), **options), second], 1)
    again = model.generate(turn, **with_cache(cache), **options)
    assert torch.equal(again, model.generate(turn, **options))


def test_one_prompt_serves_many(model):
    prompt, ends = tokens(1, 11), [tokens(1, 4, seed=s) for s in (8, 9)]
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(prompt, **with_cache(cache))
        for end in ends:
            out = model(end, **with_cache(copy.deepcopy(cache))).logits
            assert error(out, model(torch.cat([prompt, end], 1)).logits[:, 11:]) < TOLERANCE


@pytest.mark.parametrize("change", ["reorder", "repeat", "select"])
def test_rows_of_the_cache_move_with_keys_and_values(change):
    model, ids, end = model_of(), tokens(3, 9), tokens(6, 3, seed=9)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids, **with_cache(cache))
        if change == "reorder":
            rows = torch.tensor([2, 0, 0])
            cache.reorder_cache(rows)
        elif change == "repeat":
            rows = torch.tensor([0, 0, 1, 1, 2, 2])
            cache.batch_repeat_interleave(2)
        else:
            rows = torch.tensor([2, 1])
            cache.batch_select_indices(rows)
        end = end[: len(rows)]
        out = model(end, **with_cache(cache)).logits
        assert error(out, model(torch.cat([ids[rows], end], 1)).logits[:, 9:]) < TOLERANCE
        # and once more, from one piece
        cache.reorder_cache(torch.arange(len(rows)).flip(0))
        ids = torch.cat([ids[rows], end], 1).flip(0)
        out = model(end, **with_cache(cache)).logits
        assert error(out, model(torch.cat([ids, end], 1)).logits[:, 12:]) < TOLERANCE


@pytest.mark.parametrize("removed", [1, 5, CROPPABLE_TOKENS])
def test_crop_goes_back(removed):
    model, ids, end = model_of(), tokens(2, CROPPABLE_TOKENS + 20), tokens(2, 3, seed=9)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :-7], **with_cache(cache))
        for t in range(-7, 0):
            model(ids[:, t:][:, :1], **with_cache(cache))
        cache.crop(-removed)
        remaining = ids[:, :-removed]
        out = model(end, **with_cache(cache)).logits
        assert error(out, model(torch.cat([remaining, end], 1)).logits[:, remaining.shape[1] :]) < TOLERANCE


def test_crop_further_than_the_tail_is_refused():
    model, ids = model_of(), tokens(2, CROPPABLE_TOKENS + 20)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids, **with_cache(cache))
        most = CROPPABLE_TOKENS
        with pytest.raises(StateError, match=rf"by {most + 1} of its {most + 20} tokens.*last {most};"):
            cache.crop(-CROPPABLE_TOKENS - 1)


def test_crop_by_a_positive_number_is_refused():
    with pytest.raises(StateError, match="negative number"):
        HRMState(static=False).crop(3)


def test_an_empty_cache_can_be_cropped(model):
    ids, cache = tokens(2, 7), DynamicCache()
    with torch.no_grad():
        full = model(ids).logits
        model(ids, **with_cache(cache))
        cache.crop(-7)
        cache.crop(-3)
        assert error(model(ids, **with_cache(cache)).logits, full) < TOLERANCE


def test_crop_to_nothing_and_reset_are_new_caches(model):
    ids = tokens(2, 7)
    with torch.no_grad():
        full = model(ids).logits
        for empty in (lambda c: c.crop(-7), lambda c: c.reset()):
            cache = DynamicCache()
            model(ids.flip(1), **with_cache(cache))
            empty(cache)
            if cache.get_seq_length():
                # transformers 5.17 resets a growing cache to as many keys of zeros, which the base reads
                with pytest.raises(StateError, match="7 tokens, of which the adapter has followed 0"):
                    model(ids, **with_cache(cache))
                continue
            assert error(model(ids, **with_cache(cache)).logits, full) < TOLERANCE


def test_gradients_through_a_static_cache():
    # the slot is overwritten by the next tokens; without a copy the backward pass read those, or failed
    state = HRMState(static=True)
    state.store("0.mlp", {"a": torch.ones(1, 2, 1)})
    weight = torch.tensor(2.0, requires_grad=True)
    before = state.previous("0.mlp", "a")
    product = weight * before
    with torch.no_grad():
        state.store("0.mlp", {"a": torch.full((1, 2, 1), 5.0)})
    product.sum().backward()
    assert torch.equal(before, torch.ones(1, 2)) and weight.grad == 2


def test_cropping_by_a_tensor():
    # assisted decoding of transformers 5.17 gives the number in a tensor, which was counted down in place:
    # the states were cropped, their number was not
    model, ids, cache, number = model_of(), tokens(2, 12), DynamicCache(), torch.tensor(-5)
    with torch.no_grad():
        full = model(ids).logits
        model(ids, **with_cache(cache))
        cache.crop(number)
        assert number == -5
        assert error(model(ids[:, 7:], **with_cache(cache)).logits, full[:, 7:]) < TOLERANCE


def test_a_static_cache_can_be_reset():
    model, ids = model_of(), tokens(2, 7)
    cache = StaticCache(model.config, max_cache_len=16)
    with torch.no_grad():
        full = model(ids).logits
        model(ids.flip(1), **with_cache(cache))
        cache.reset()
        assert error(model(ids, **with_cache(cache)).logits, full) < TOLERANCE


def test_the_tail_is_bounded_and_holds_no_prompt():
    model, ids = model_of(), tokens(1, 300)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids, **with_cache(cache))
        for t in range(100):
            model(ids[:, t : t + 1], **with_cache(cache))
    (track,) = states(cache)._histories["0.mlp"].values()
    pieces = [piece for _, piece in track._pieces]
    assert track._length == sum(tokens for tokens, _ in track._pieces) == CROPPABLE_TOKENS + 1
    stored = {piece.untyped_storage().data_ptr(): piece.untyped_storage().nbytes() for piece in pieces}
    assert sum(stored.values()) <= 4 * 6 * (CROPPABLE_TOKENS + 1)


def test_training_through_a_cache_gives_the_full_gradient():
    model, ids = model_of(), tokens(2, 12)
    model(ids).logits.square().mean().backward()
    full = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    cache, out = DynamicCache(config=model.config), []
    for t in range(0, 12, 4):
        out.append(model(ids[:, t : t + 4], **with_cache(cache)).logits)
    torch.cat(out, 1).square().mean().backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert error(p.grad / full[name].abs().max(), full[name] / full[name].abs().max()) < 1e-5


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_padding_at_any_place_with_a_cache(model, static):
    ids = tokens(2, 17)
    batch = padded(ids, slice(0, 4), 21)
    valid = batch["attention_mask"][0].bool()
    for with_positions in (True, False):
        cache = StaticCache(model.config, max_cache_len=24) if static else DynamicCache(config=model.config)
        logits = []
        with torch.no_grad():
            for start, end in ((0, 3), (3, 12), (12, 13), (13, 21)):
                more = {"position_ids": batch["position_ids"][:, start:end]} if with_positions else {}
                logits.append(
                    model(
                        batch["input_ids"][:, start:end],
                        attention_mask=batch["attention_mask"][:, :end],
                        **with_cache(cache),
                        **more,
                    ).logits
                )
            assert error(torch.cat(logits, 1)[:, valid], model(ids).logits) < TOLERANCE


def test_a_mask_as_wide_as_the_window_of_a_static_cache():
    model, ids = model_of(8), tokens(2, 7)
    batch = padded(ids, slice(0, 1), 8)
    cache, logits = StaticCache(model.config, max_cache_len=16), []
    with torch.no_grad():
        for start, end in ((0, 5), (5, 8)):
            part = batch["input_ids"][:, start:end]
            out = model(part, attention_mask=batch["attention_mask"][:, :end], **with_cache(cache))
            logits.append(out.logits)
        assert error(torch.cat(logits, 1)[:, 1:], model(ids).logits) < TOLERANCE


def _doubled(system):
    original = type(system).forward

    def forward(*args, **kwargs):
        y, s = original(system, *args, **kwargs)
        return 2 * y, s

    return forward


@pytest.mark.parametrize("kind", ["forward of the instance", "hook of the module", "hook of all modules"])
@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
def test_decoding_calls_the_systems_as_the_prompt_does(kind, static):
    # decoding computed a token without calling the system where the module had no hooks of its own: a forward
    # that another library had replaced, and hooks of all modules, were used in the prompt and ignored then
    model, ids = model_of(), tokens(1, 12)
    systems = [system_of(model, layer) for layer in (0, 1)]

    def doubled(module, _, output):
        return (2 * output[0], output[1]) if module in systems else output

    handles = []
    if kind == "forward of the instance":
        for system in systems:
            system.forward = _doubled(system)
    elif kind == "hook of the module":
        handles = [system.register_forward_hook(doubled) for system in systems]
    else:
        handles = [torch.nn.modules.module.register_module_forward_hook(doubled)]
    try:
        with torch.no_grad():
            full = model(ids, use_cache=False).logits
            assert error(full, model_of()(ids, use_cache=False).logits) > 1e-3
        cache = StaticCache(model.config, max_cache_len=16) if static else None
        seen = step_by_step(model, ids, cache=cache)
    finally:
        for handle in handles:
            handle.remove()
    assert error(seen, full) < TOLERANCE


def _load(system, parameters):
    system.load_state_dict(parameters)


def _replace(system, parameters):
    for name, value in parameters.items():
        setattr(system, name, torch.nn.Parameter(value))


def _move(system, parameters):
    for name, value in parameters.items():
        system.get_parameter(name).data = value


@pytest.mark.parametrize("change", [_load, _replace, _move])
@pytest.mark.parametrize("fields", [{}, HYBRID], ids=["mlp", "hybrid"])
@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
@pytest.mark.parametrize("layers", [(0,), (1,), (0, 1)], ids=str)
def test_parameters_may_change_while_a_cache_is_in_use(change, fields, static, layers):
    # B was the parameter itself, poles and C were copies from before: tokens after the change were computed
    # with some of both, off by more than the largest logit
    model, ids = model_of(**fields), tokens(2, 14)
    other = with_random_output(model_of(**fields), seed=8)
    with torch.no_grad():
        for layer in (0, 1):
            system_of(other, layer).B.mul_(1.5)
            system_of(other, layer).log_rate.add_(0.5)
    cache = StaticCache(model.config, max_cache_len=16) if static else DynamicCache()
    step_by_step(model, ids[:, :10], cache=cache)
    for layer in layers:
        parameters = {name: p.detach().clone() for name, p in system_of(other, layer).named_parameters()}
        change(system_of(model, layer), parameters)
    # the same keys and states in a new cache, for which nothing has been prepared
    again = copy.deepcopy(cache)
    with torch.no_grad():
        # tokens together use no prepared step
        expected = model(ids[:, 10:], **with_cache(again)).logits
    assert error(step_by_step(model, ids[:, 10:], cache=cache), expected) < TOLERANCE


class Half(torch.nn.Module):
    def forward(self, value):
        return value / 2


def _parametrize(system):
    parametrize.register_parametrization(system, "B", Half())
    return system.parametrizations.B.original


def _prune(system):
    prune.random_unstructured(system, "B", amount=0.3)
    return system.B_orig


def _normalize(system):
    with pytest.warns(FutureWarning, match="weight_norm"):
        weight_norm(system, "B")
    return system.B_g


@pytest.mark.parametrize("computed", [_parametrize, _prune, _normalize])
@pytest.mark.parametrize("fields", [{}, {"tap": "output"}, HYBRID], ids=str)
@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
def test_parameters_that_are_computed_may_change_while_a_cache_is_in_use(computed, fields, static):
    # a parametrized B is no entry of the module's parameters: its changes were not noticed. A pruned one was
    # read before the pre-hook that computes it: setting B_orig to zero changed no later token
    model, ids = model_of(**fields), tokens(2, 14)
    originals = [computed(system_of(model, layer)) for layer in (0, 1)]
    cache = StaticCache(model.config, max_cache_len=16) if static else DynamicCache()
    step_by_step(model, ids[:, :10], cache=cache)
    again, unchanged = copy.deepcopy(cache), copy.deepcopy(cache)
    with torch.no_grad():
        before = model(ids[:, 10:], **with_cache(unchanged)).logits
        for original in originals:
            original.mul_(-1.5)
    seen = step_by_step(model, ids[:, 10:], cache=cache)  # first: this call must run the pre-hooks
    with torch.no_grad():
        model(ids, use_cache=False)  # now every parameter is up to date
        expected = model(ids[:, 10:], **with_cache(again)).logits
    assert error(before, expected) > 1e-3
    assert error(seen, expected) < TOLERANCE


@pytest.mark.parametrize("computed", [_prune, _normalize])
def test_a_pass_without_a_cache_reads_computed_parameters_as_they_are_now(computed):
    # static readouts read B before the pre-hook that computes it: the first pass used the one from before
    model, ids = model_of(**HYBRID), tokens(2, 8)
    originals = [computed(system_of(model, layer)) for layer in (0, 1)]
    with torch.no_grad():
        for original in originals:
            original.mul_(-1.5)
        first = model(ids, use_cache=False).logits
        assert torch.equal(first, model(ids, use_cache=False).logits)
    for _ in range(2):  # a product from before would be that of a graph that has been freed
        model(ids, labels=ids).loss.backward()
    assert all(bool(original.grad.any()) for original in originals)


def test_pruning_while_a_cache_is_in_use():
    # begun and made permanent between two tokens
    model, ids, cache = model_of(**HYBRID), tokens(2, 16), DynamicCache()
    seen = [step_by_step(model, ids[:, :6], cache=cache)]
    systems = [system_of(model, layer) for layer in (0, 1)]
    for system in systems:
        prune.ln_structured(system, "B", amount=0.5, n=2, dim=0)
    pruned = copy.deepcopy(cache)
    seen.append(step_by_step(model, ids[:, 6:11], cache=cache))
    for system in systems:
        prune.remove(system, "B")
    seen.append(step_by_step(model, ids[:, 11:], cache=cache))
    with torch.no_grad():
        expected = model(ids[:, 6:], **with_cache(pruned)).logits
    assert error(torch.cat(seen[1:], 1), expected) < TOLERANCE


@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
def test_a_cache_is_saved_without_the_adapters(static):
    # the systems were saved with it, by way of the steps that were prepared from them,
    # which failed where a system had a lambda for a hook
    model, ids = model_of(**HYBRID), tokens(2, 14)
    system_of(model).register_forward_hook(lambda *_: None)
    cache = StaticCache(model.config, max_cache_len=16) if static else DynamicCache()
    step_by_step(model, ids[:, :8], cache=cache)
    pickled, file = pickle.dumps(cache), io.BytesIO()
    torch.save(cache, file)
    assert b"hankelred_llm.adapter" not in pickled + file.getvalue()
    file.seek(0)
    again = [pickle.loads(pickled), torch.load(file, weights_only=False), copy.deepcopy(cache)]
    expected = step_by_step(model, ids[:, 8:], cache=cache)
    for each in again:
        assert error(step_by_step(model, ids[:, 8:], cache=each), expected) < 1e-6


@pytest.mark.parametrize("change", ["rows", "reset"])
def test_steps_that_were_prepared_before_are_freed(change):
    # those for every earlier number of rows were kept, with their copies of parameters
    model, ids, cache = model_of(), tokens(2, 12), DynamicCache()
    step_by_step(model, ids[:, :8], cache=cache)
    histories = [history for block in states(cache)._histories.values() for history in block.values()]
    prepared = [weakref.ref(history.stepper.C) for history in histories]
    del histories
    with torch.no_grad():
        for layer in (0, 1):
            system_of(model, layer).C.mul_(2)
    if change == "rows":
        cache.batch_select_indices(torch.tensor([1]))
        step_by_step(model, ids[1:, 8:], cache=cache)
    else:
        states(cache).reset()
    gc.collect()
    assert [each() for each in prepared] == [None, None]


def test_a_gate_that_is_closed_adds_nothing_to_the_next_token():
    # the output map was a copy with the gate from before, so the adapter still added its output
    model, ids = model_of(), tokens(1, 12)
    cache, keys_only = DynamicCache(), DynamicCache()
    step_by_step(model, ids[:, :11], cache=cache)
    for k, layer in enumerate(cache.layers[:2]):
        keys_only.update(layer.keys, layer.values, k)
    with torch.no_grad():
        for layer in (0, 1):
            system_of(model, layer).gate.zero_()
        expected = base_model(sliding_window=None)(ids[:, 11:], **with_cache(keys_only)).logits
        assert error(model(ids[:, 11:], **with_cache(cache)).logits, expected) < TOLERANCE


@pytest.mark.parametrize("place", ["own", "all modules"])
def test_pre_hooks_run_at_every_token(place):
    # pre-hooks of all modules, such as those of profilers, ran in the first two of seven tokens only
    model, ids, calls = model_of(), tokens(1, 7), []
    system = system_of(model)

    def count(module, _):
        if module is system:
            calls.append(module)

    if place == "own":
        handle = system.register_forward_pre_hook(count)
    else:
        handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        step_by_step(model, ids)
    finally:
        handle.remove()
    assert len(calls) == 7


class TestRefusals:
    """A cache that an adapter has not followed from its first token is refused."""

    def fill(self, model, cache, ids):
        with torch.no_grad():
            model(ids, **with_cache(cache))

    @pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
    def test_filled_with_the_adapter_off(self, model, static):
        ids = tokens(1, 6)
        cache = StaticCache(model.config, max_cache_len=32) if static else DynamicCache(config=model.config)
        with model.disable_adapter():
            self.fill(model, cache, ids)
        with pytest.raises(StateError, match="6 tokens that no adapter has processed"):
            self.fill(model, cache, ids)

    @pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
    def test_switched_off_in_between(self, model, static):
        ids = tokens(1, 6)
        cache = StaticCache(model.config, max_cache_len=32) if static else DynamicCache(config=model.config)
        self.fill(model, cache, ids)
        with model.disable_adapter():
            self.fill(model, cache, ids)
        with pytest.raises(StateError, match=r"has followed 6|has not processed"):
            self.fill(model, cache, ids)

    @pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
    def test_filled_with_another_adapter(self, model, static):
        ids = tokens(1, 6)
        model.add_adapter("other", hankelred_llm.HRMConfig(r=4))
        cache = StaticCache(model.config, max_cache_len=32) if static else DynamicCache(config=model.config)
        self.fill(model, cache, ids)
        model.set_adapter("other")
        with pytest.raises(StateError, match="has not processed"):
            self.fill(model, cache, ids)

    def test_switched_there_and_back(self, model):
        ids, cache = tokens(1, 6), DynamicCache(config=model.config)
        model.add_adapter("other", hankelred_llm.HRMConfig(r=4))
        model.base_model.set_adapter(["default", "other"])
        self.fill(model, cache, ids)
        model.set_adapter("default")
        self.fill(model, cache, ids)
        model.base_model.set_adapter(["default", "other"])
        with pytest.raises(StateError, match="has not processed"):
            self.fill(model, cache, ids)

    def test_filled_by_another_model(self, model):
        ids, cache = tokens(1, 6), DynamicCache(config=model.config)
        self.fill(copy.deepcopy(model), cache, ids)
        with pytest.raises(StateError, match="another model"):
            self.fill(model, cache, ids)

    def test_written_by_a_model_without_adapter(self, model):
        ids, cache = tokens(1, 6), DynamicCache(config=model.config)
        self.fill(model, cache, ids)
        self.fill(base_model(sliding_window=model.config.sliding_window), cache, ids)
        with pytest.raises(StateError, match="12 tokens, of which the adapter has followed 6"):
            self.fill(model, cache, ids)

    def test_another_system_in_its_place(self, model):
        ids, cache = tokens(1, 6), DynamicCache(config=model.config)
        self.fill(model, cache, ids)
        hankelred_llm.set_systems(model, hankelred_llm.get_systems(model))
        with pytest.raises(StateError, match="has not processed"):
            self.fill(model, cache, ids)

    def test_encoder_decoder_caches(self, model):
        cache = EncoderDecoderCache(
            DynamicCache(config=model.config),
            DynamicCache(config=model.config),
        )
        with pytest.raises(StateError, match="EncoderDecoderCache"):
            self.fill(model, cache, tokens(1, 6))

    def test_four_dimensional_masks_over_a_growing_cache(self, model):
        cache = DynamicCache(config=model.config)
        self.fill(model, cache, tokens(1, 6))
        with pytest.raises(StateError, match="which tokens in the cache"):
            model(tokens(1, 2), attention_mask=torch.ones(1, 1, 2, 8).bool(), **with_cache(cache))

    def test_paged_caches(self, model):
        for call in (model.generate_batch, model.base_model.generate_batch):
            with pytest.raises(hankelred_llm.AdapterError, match="paged cache"):
                call([[1, 2, 3]])

    def test_continuous_batching_of_the_bare_model(self, model):
        base = model.get_base_model()
        options = GenerationConfig(max_new_tokens=3, do_sample=False)
        # few blocks: without a number, the cache takes most of the memory of the machine
        config = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=32)
        outputs = base.generate_batch(
            [[5, 6, 7]], generation_config=options, continuous_batching_config=config, progress_bar=False
        )
        (request,) = outputs.values()
        assert "paged cache" in request.error and not request.generated_tokens

    def test_paged_attention(self, model):
        base = model.get_base_model()
        base.config._attn_implementation = "paged|sdpa"
        with pytest.raises(StateError, match="paged cache"):
            base(tokens(1, 6))


def test_threads_do_not_meet(model):
    """Two generations at once, of rows padded differently."""
    prompts = [tokens(2, length, seed=length) for length in (6, 9, 12, 15)]
    alone = [model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False) for ids in prompts]
    with ThreadPoolExecutor(4) as pool:
        together = list(
            pool.map(
                lambda ids: model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False),
                prompts,
            )
        )
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_an_interrupted_pass_leaves_nothing_behind():
    model, ids = model_of(), tokens(1, 6)
    with torch.no_grad():
        expected = model(ids).logits
        handle = model.get_base_model().model.layers[1].register_forward_pre_hook(_interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(ids)
        handle.remove()
        assert torch.equal(model(ids).logits, expected)


def test_an_interrupted_pass_does_not_serve_a_block_that_is_called_alone():
    # torch runs no hook after a KeyboardInterrupt: the pass stayed the current one
    model, ids = model_of(), tokens(1, 6)
    block = model.get_base_model().model.layers[0].mlp
    handle = model.get_base_model().model.layers[1].register_forward_pre_hook(_interrupt)
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        model(ids)
    handle.remove()
    with pytest.raises(StateError, match="outside the forward pass"):
        block(torch.zeros(1, 6, 32))


def test_an_interrupted_pass_does_not_serve_a_layer_that_is_called_alone():
    # it ran with the padding and the cache of the interrupted pass
    model, ids = model_of(), tokens(1, 6)
    layer = model.get_base_model().model.layers[0]
    handle = layer.mlp.register_forward_pre_hook(_interrupt)
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        model(ids)
    handle.remove()
    turned = torch.ones(1, 6, 8), torch.zeros(1, 6, 8)
    with pytest.raises(StateError, match="outside the forward pass"):
        layer(torch.zeros(1, 6, 32), position_embeddings=turned)


@pytest.mark.parametrize("place", ["layers.1", "layers.1.mlp", "embed_tokens", "norm"])
def test_an_interrupted_pass_is_freed_with_its_cache(place):
    # the thread kept it, and each one that followed: every interrupted generation cost its keys and values;
    # outside of a decoder layer it was still kept until the next pass
    model, ids = model_of(), tokens(1, 6)
    handle = model.get_base_model().model.get_submodule(place).register_forward_pre_hook(_interrupt)
    caches = []
    for _ in range(2):
        cache = DynamicCache(config=model.config)
        caches.append(weakref.ref(cache))
        with torch.no_grad(), pytest.raises(KeyboardInterrupt):
            model(ids, use_cache=True, **with_cache(cache))
        del cache
    handle.remove()
    gc.collect()
    assert [cache() for cache in caches] == [None, None]


@pytest.mark.parametrize("place", ["layers.1", "embed_tokens", "norm"])
def test_an_interrupted_training_step_leaves_no_context(place):
    # one interrupted in the embedding or in the last norm left its context, with its graph, in the thread
    model, ids = model_of(), tokens(1, 6)
    handle = model.get_base_model().model.get_submodule(place).register_forward_pre_hook(_interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(ids, labels=ids)
    handle.remove()
    assert forward_context._running.call is None
    model(ids, labels=ids).loss.backward()
    with pytest.raises(StateError, match="outside the forward pass"):
        model.get_base_model().model.layers[0].mlp(torch.zeros(1, 6, 32))


def test_a_pass_that_is_interrupted_inside_another_one_ends_only_itself():
    model, other, ids = model_of(), model_of(r=3), tokens(1, 6)
    other.get_base_model().model.norm.register_forward_pre_hook(_interrupt)

    def interrupted(*_):
        with pytest.raises(KeyboardInterrupt):
            other(ids)

    with torch.no_grad():
        expected = model(ids).logits
        model.get_base_model().model.layers[0].mlp.register_forward_pre_hook(interrupted)
        assert torch.equal(model(ids).logits, expected)


def test_a_pass_that_is_refused_inside_another_one_ends_only_itself():
    # the hook of the inner decoder ended the pass of the outer one, whose other layers then had no context
    model, other, ids = model_of(), model_of(r=3), tokens(1, 6)

    def refused(*_):
        with pytest.raises(StateError, match=r"shape \(3, 1, 6\)"):
            other(ids, position_ids=torch.zeros(3, 1, 6, dtype=torch.long))

    with torch.no_grad():
        expected = model(ids).logits
        handle = model.get_base_model().model.layers[0].mlp.register_forward_pre_hook(refused)
        assert torch.equal(model(ids).logits, expected)
        handle.remove()


def _interrupt(*_):
    raise KeyboardInterrupt


def test_no_cache_is_left_alone_by_a_model_that_was_unloaded():
    model = model_of()
    base, ids = model.unload(), tokens(1, 6)
    with torch.no_grad():
        out = base(ids, use_cache=True)
    assert len(cache_of(out).layers) == 2
