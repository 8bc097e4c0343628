# A limit of gate, and none of up.
# block: GatedMLP("Block", limit="limit")
# site: line 10: mlp call-alone: gate_proj
# site: line 11: mlp call-alone: up_proj
# site: line 12: mlp call-alone: down_proj
# skip: line 11: mlp: not a gated MLP: `self.up_proj(x)` stands in between

class Block(nn.Module):
    def forward(self, x):
        gate = self.apply_linear(self.gate_proj, x).clamp(max=self.limit)
        up = self.apply_linear(self.up_proj, x)
        return self.apply_linear(self.down_proj, self.act_fn(gate) * up)
