"""From a record to an adapter: a system identified from data as the initialization of an adapter layer.

Inputs and outputs of an unknown process are recorded. ``hankelred.identify`` estimates a model of it, and
``set_systems`` puts the model into an adapter; its input and output are directions of the hidden states that
are chosen here. The adapter then adds the response of the process to the residual stream, and can be trained
further like any other. Run with

    python examples/system_as_adapter.py

It writes system_as_adapter.png with the impulse responses of the process and of the adapter. The state of an
adapter includes the current token, so it responds one token earlier than ``x[k+1] = A x[k] + B u[k]`` of the
core.
"""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers

import hankelred
import hankelred_llm

WIDTH = 32


POLES = np.array([0.98, 0.9 * np.exp(0.6j), 0.9 * np.exp(-0.6j)])
PROCESS = hankelred.ModalSystem(np.log(POLES), np.ones((3, 1)), [[0.1, 0.3 - 0.2j, 0.3 + 0.2j]])


def record(samples: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Return an input and a noisy output (1, samples) of a process with a slow and a ringing mode."""
    rng = np.random.default_rng(0)
    u = rng.standard_normal((1, samples))
    y = hankelred.simulate(PROCESS, u)
    return u, y + 0.05 * rng.standard_normal(y.shape)


def main() -> None:
    """Run the example."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    u, y = record()
    identified = hankelred.identify(u, y, 3, dt=True)
    print(f"identified: {identified.system.nstates} states, fit {float(identified.fit[0]):.3f}")
    modal = hankelred.modal_form(identified.system)
    print("poles:", np.round(modal.poles, 3))

    # one channel in, one out: directions of the hidden states
    rng = np.random.default_rng(1)
    into, out_of = (rng.standard_normal(WIDTH) / WIDTH**0.5 for _ in range(2))
    placed = hankelred.ModalSystem(modal.log_poles, modal.B * into, out_of[:, None] * modal.C)

    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = hankelred_llm.attach(transformers.MistralForCausalLM(config), r=4)
    hankelred_llm.set_systems(model, {1: placed})
    print("orders in the configuration:", model.peft_config["default"].rank_pattern)

    tokens = torch.randint(64, (4, 32))
    log_poles, B, C = hankelred_llm.get_systems(model)[1]
    there = hankelred.ModalSystem(log_poles, B, C)
    u_new = rng.standard_normal((WIDTH, 200))
    difference = hankelred.simulate(there, u_new) - hankelred.simulate(placed, u_new)
    print(f"in the adapter's float32 parameters its answers differ by {np.abs(difference).max():.1e}")

    # read in the chosen directions, which are not of unit length
    scale = (into @ into) * (out_of @ out_of)
    answer = np.einsum("i,tij,j->t", out_of, hankelred.impulse_response(there, 120), into) / scale
    _, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    process = hankelred.impulse_response(PROCESS, 120)[:, 0, 0]
    axes.plot(process, color="#0072B2", linewidth=3, label="process")
    axes.plot(answer, "--", color="#D55E00", label="adapter, from the noisy record")
    axes.set(xlabel="tokens", ylabel="impulse response")
    axes.legend()
    axes.figure.savefig("system_as_adapter.png", dpi=130)
    print("wrote system_as_adapter.png")

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    print(f"and it trains: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    report = hankelred_llm.reduce(model, ranks={1: 2})
    print(report)


if __name__ == "__main__":
    main()
