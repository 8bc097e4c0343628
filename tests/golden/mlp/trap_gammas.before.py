# Trap: a third factor: inkling's shared experts, as modules.
# block: GatedMLP("Block")
# site: line 11: mlp call-alone: gate_proj
# site: line 11: mlp call-alone: up_proj
# site: line 13: mlp call-alone: down_proj
# skip: line 12: mlp: not a gated MLP: `self.act_fn(gate) * up * gammas` stands in between


class Block(nn.Module):
    def forward(self, x, gammas):
        gate, up = self.gate_proj(x), self.up_proj(x)
        activated = self.act_fn(gate) * up * gammas
        return self.down_proj(activated)
