"""The sizes that modules and configs state: head counts, head sizes, ranks, numbers of experts."""

from collections.abc import Iterable

from .modules import Place

# Each size with the names under which it stands, in modules and in configs.
NAMES: dict[str, tuple[str, ...]] = {
    "heads": (
        "num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads",
        "num_query_heads", "num_q_heads", "attention_heads", "encoder_attention_heads", "nheads",
        "num_attention_heads_per_partition",
    ),
    "kv_heads": (
        "num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head", "n_head_kv", "kv_heads",
        "num_key_value_heads_per_layer", "num_query_groups", "n_query_groups",
        "num_query_groups_per_partition",
    ),
    "head_dim": (
        "head_dim", "attention_head_size", "head_size", "dim_head", "d_head", "d_kv",
        "key_value_proj_dim", "dim_per_head", "attention_head_dim", "kv_channels", "inner_dim_head",
        "hidden_size_per_attention_head",
    ),
    "v_head_dim": ("v_head_dim", "d_v"),
    "kv_rank": ("kv_lora_rank",),
    "nope": ("qk_nope_head_dim",),
    "rope": ("qk_rope_head_dim", "qk_rope_dim"),
    "inner": ("intermediate_size", "d_inner", "inner_size"),
    "state": ("ssm_state_size", "state_size", "d_state", "mamba_d_state"),
    "dt_rank": ("time_step_rank", "dt_rank", "mamba_dt_rank"),
    "groups": ("n_groups", "mamba_n_groups", "ngroups"),
    "labels": ("num_labels", "num_classes"),
    "pooled": ("pooler_output_size",),
    "k_heads": ("num_k_heads", "linear_num_key_heads"),
    "v_heads": ("num_v_heads", "linear_num_value_heads"),
    "k_dim": ("head_k_dim", "linear_key_head_dim"),
    "v_dim": ("head_v_dim", "linear_value_head_dim"),
}  # fmt: skip
_REPEATS = ("num_key_value_groups", "n_rep", "num_queries_per_kv", "kv_groups")
# How many experts a layer has.
EXPERTS = (
    "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts",
    "n_experts", "num_moe_experts", "router_num_experts",
)  # fmt: skip
WIDTHS = ("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "hidden_dim")
VOCABULARIES = ("vocab_size", "decoder_vocab_size", "tgt_vocab_size", "target_vocab_size")

Numbers = dict[str, int]


def read(thing, *names: str) -> int | None:
    """The first of these attributes that is a positive whole number. Configs raise for what
    differs from layer to layer."""
    for name in names:
        try:
            value = getattr(thing, name, None)
        except Exception:
            continue
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def flag(thing, *names: str):
    """The first of these attributes that is there and not None."""
    for name in names:
        try:
            value = getattr(thing, name, None)
        except Exception:
            continue
        if value is not None:
            return value
    return None


def parts(config) -> list:
    """The configs that a composite config holds."""
    own = () if config is None else vars(config).values()
    return [value for value in own if hasattr(type(value), "model_type")]


def widths(thing) -> set[int]:
    """The sizes that a module or config states under any of the names of a width."""
    return {width for name in WIDTHS if (width := read(thing, name)) is not None}


def of(thing) -> Numbers:
    """Every size that one module or config states, by the names above."""
    found = {}
    if thing is None:
        return found
    for size, names in NAMES.items():
        value = read(thing, *names)
        if value is not None:
            found[size] = value
    repeats = read(thing, *_REPEATS)
    if repeats and "kv_heads" not in found and "heads" in found and found["heads"] % repeats == 0:
        found["kv_heads"] = found["heads"] // repeats
    return found


def sources(places: Iterable[Place], config) -> list[Numbers]:
    """What may be known, best first: what the modules state (the first one's word counts most)
    with the config's where they are silent, each of the two alone."""
    modules: Numbers = {}
    for place in places:
        modules = of(place.module) | modules
    of_config = of(config)
    found = []
    for numbers in (of_config | modules, modules, of_config):
        if numbers and numbers not in found:
            found.append(numbers)
    return found


def experts(place: Place) -> set[int]:
    """The numbers of experts that the module, those around it and the config state."""
    things = [place.module, place.config]
    user = place.owner
    while user is not None and len(things) < 4:
        things.append(user.module)
        user = user.owner
    found = {read(thing, name) for thing in things for name in EXPERTS}
    found |= {read(part, name) for part in parts(place.config) for name in EXPERTS}
    return {number for number in found if number is not None}


def stated(place: Place) -> set[int]:
    """Every size that the module, what is around it and the config state."""
    things = [place.module, place.config, *parts(place.config)]
    if place.owner is not None:
        things.append(place.owner.module)
    found = {value for thing in things for value in of(thing).values()}
    for thing in things:
        found |= widths(thing)
    return (found | experts(place)) - {1}
