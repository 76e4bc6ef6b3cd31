"""The optimizer's step over all parameters of real models, beside others', alone and in a graph.

    python benchmarks/train_step.py [--device cpu|cuda] [--scale N] [--out FILE.json]

The parameters are those of the published configurations, in bfloat16 on a GPU, made by transformers
with random values; the gradients come from a training step on random tokens. harness.py says what
the figures mean; also

share_of_training_step: our step over forward, backward and our step on 8192 tokens.
ratio_to_..._muon_and_adamw_fused: another's Muon for the matrices, each expert its own, and
    torch.optim.AdamW(fused=True) for the rest.
in_graph_equals_eager: whether replays of a CUDA graph leave the bits that eager steps leave.
"""

import math
import sys
from pathlib import Path

import erlangen
import harness
import torch
from harness import BF16, FP32
from transformers import AutoModelForCausalLM, OlmoeConfig, Qwen3Config

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from models import hidden_matrices  # noqa: E402

TOKENS, SEQUENCE = 8192, 4096

# name: (configuration, its numbers, by what a CPU divides them)
MODELS = {
    "Qwen3, 24 layers of 256": (
        Qwen3Config,
        dict(
            vocab_size=8192,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=24,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=32,
        ),
        1,
    ),
    "Qwen3-0.6B": (
        Qwen3Config,
        dict(
            vocab_size=151936,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=True,
        ),
        8,
    ),
    "OLMoE-1B-7B, 12 of its 16 layers": (
        OlmoeConfig,
        dict(
            vocab_size=50304,
            hidden_size=2048,
            intermediate_size=1024,  # of an expert
            num_hidden_layers=12,
            num_attention_heads=16,
            num_key_value_heads=16,
            num_experts=64,
            num_experts_per_tok=8,
            tie_word_embeddings=False,
        ),
        8,
    ),
}
# What --scale divides, and the least that is left.
SCALED = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "head_dim": 2,
    "num_experts": 8,
}


def build(config_class, numbers, scale: int, device: str):
    numbers = {k: max(SCALED[k], v // scale) if k in SCALED else v for k, v in numbers.items()}
    config = config_class(**numbers, use_cache=False, bos_token_id=None, eos_token_id=0)
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=BF16 if device == "cuda" else FP32)


def training_step(model, scale: int):
    length = min(TOKENS // scale, SEQUENCE)
    tokens = torch.randint(
        0, model.config.vocab_size, (TOKENS // scale // length, length), device=model.device
    )

    def step():
        model.zero_grad(set_to_none=False)
        model(input_ids=tokens, labels=tokens).loss.backward()

    return step


def single_matrices(matrices) -> list[torch.Tensor]:
    """Stacks of experts as one parameter each, over the same memory."""
    result = []
    for p in matrices:
        for value, grad in [(p, p.grad)] if p.ndim == 2 else zip(p, p.grad, strict=True):
            single = value.detach().requires_grad_()
            single.grad = grad
            result.append(single)
    return result


def both(make_muon, matrices, rest):
    optimizers = make_muon(matrices), torch.optim.AdamW(rest, fused=True)
    return lambda: [optimizer.step() for optimizer in optimizers]


def in_graph(model, settings) -> dict:
    rate = torch.tensor(1e-3, device=settings.device)
    optimizer = erlangen.Equivariant(model, lr=rate, capturable=True)
    replay = harness.captured(optimizer.step)
    tensors = [p.detach() for p in model.parameters()]
    tensors += [t for state in optimizer.state.values() for t in state.values()]
    before = [t.cpu() for t in tensors]

    def after_two(step):
        for t, start in zip(tensors, before, strict=True):
            t.copy_(start)
        step()
        step()
        return [t.cpu() for t in tensors]

    pairs = zip(after_two(replay), after_two(optimizer.step), strict=True)
    equal = all(torch.equal(a, b) for a, b in pairs)
    time = settings.in_turns({"graph": replay})["graph"]
    return {"in_graph_equals_eager": equal, "milliseconds_in_graph": harness.rounded(time)}


def run(config_class, numbers, scale: int, settings, peers) -> dict:
    model = build(config_class, numbers, scale, settings.device)
    train = training_step(model, scale)
    train()  # gradients come into being, and stay where they are
    named = hidden_matrices(model)
    chosen = set(map(id, named.values()))
    rest = [p for p in model.parameters() if id(p) not in chosen]
    matrices = single_matrices(named.values())
    functions = {"ours": harness.Made(lambda: erlangen.Equivariant(model).step)}
    for name, peer in peers.items():
        if peer.muon:
            functions[f"{name}_muon_and_adamw_fused"] = harness.Made(
                lambda make=peer.muon: both(make, matrices, rest)
            )
    result = {"parameters": sum(p.numel() for p in model.parameters()), "scale": scale}
    functions["training"] = harness.Made(lambda: train)
    result |= settings.compare(functions, *floor_of(model), alone=True)
    result["share_of_training_step"] = harness.rounded(1 / (1 + result.pop("ratio_to_training")))
    if settings.cuda:
        try:
            result |= in_graph(model, settings)
        except torch.OutOfMemoryError:
            result["failed_in_graph"] = "out of memory"
    return result


def logical_matrices(shape, layout) -> list[tuple[int, int, int]]:
    """(count, rows, columns) of what a layout makes of a parameter."""
    parts = [(math.prod(shape[:-2]), *shape[-2:])]
    for step in layout or []:
        result = []
        for part in parts:
            count, sizes, dim = part[0], list(part[1:]), step.get("dim", -2)
            if "transpose" in step:
                result.append((count, *sizes[::-1]))
            elif "heads" in step:
                sizes[dim] //= step["heads"]
                result.append((count * step["heads"], *sizes))
            elif "pairs" in step:
                sizes[dim] //= 2
                sizes[-3 - dim] *= 2
                result.append((count, *sizes))
            else:
                for size in step["sections"]:
                    sizes[dim] = size
                    result.append((count, *sizes))
        parts = result
    return parts


def floor_of(model) -> tuple[int, int]:
    """Bytes: gradient read, parameter and float32 momentum read and written. Operations: of the
    polar iterations."""
    bytes_moved = sum(p.numel() * (3 * p.element_size() + 8) for p in model.parameters())
    operations = sum(
        count * harness.polar_operations(group["rule"], m, n)
        for group in erlangen.param_groups(model)
        if group["rule"].endswith("spectral")
        for p in group["params"]
        for count, m, n in logical_matrices(p.shape, group.get("layout"))
    )
    return bytes_moved, operations


def main(argv=None) -> dict:
    arguments = harness.parser(__doc__)
    arguments.add_argument(
        "--scale", type=int, help="divides the models' sizes (default: 1 on GPUs)"
    )
    args = arguments.parse_args(argv)
    cases = {}
    for name, (config_class, numbers, on_cpu) in MODELS.items():
        scale = args.scale or (16 if args.quick else 1 if args.device == "cuda" else on_cpu)
        cases[name] = lambda s, p, c=config_class, n=numbers, scale=scale: run(c, n, scale, s, p)
    return harness.run(args, cases)


if __name__ == "__main__":
    main()
