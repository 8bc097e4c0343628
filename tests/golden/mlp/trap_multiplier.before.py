# Trap: the gate is multiplied before the activation: falcon_h1.
# block: GatedMLP("Block")
# site: line 11: mlp call-alone: up_proj
# site: line 11: mlp call-alone: gate_proj
# site: line 12: mlp call-alone: down_proj
# skip: line 11: mlp: not a gated MLP: `self.gate_proj(x) * self.gate_multiplier` stands in between


class Block(nn.Module):
    def forward(self, x):
        y = self.up_proj(x) * self.act_fn(self.gate_proj(x) * self.gate_multiplier)
        y = self.down_proj(y) * self.down_multiplier
        return y
