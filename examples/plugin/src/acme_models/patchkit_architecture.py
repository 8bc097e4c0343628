"""Acme: the projections are called as in the paper, and SiLU is a function, so nothing of it has a usual name."""

from patchkit.arch.spec import Architecture, Attention, GatedMLP

ACME = Architecture(
    name="acme",
    model_types=("acme",),
    module="acme_models.modeling_acme",
    blocks=(
        Attention("AcmeAttention", q="wq", k="wk", v="wv", o="wo"),
        GatedMLP("AcmeFeedForward", gate="w1", up="w3", down="w2", activation_function="F.silu"),
    ),
    model="AcmeForCausalLM",
)
