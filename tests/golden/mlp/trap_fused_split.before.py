# Trap: three parts, or another dimension, are not gate and up.
# block: GatedMLP("Block", gate_up="gate_up_proj")
# site: line 10: mlp call-alone: gate_up_proj
# site: line 11: mlp call-alone: down_proj
# skip: line 10: mlp: not a gated MLP: `self.gate_up_proj(x).chunk(2, dim=1)` stands in between


class Block(nn.Module):
    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, dim=1)
        return self.down_proj(self.act_fn(gate) * up)
