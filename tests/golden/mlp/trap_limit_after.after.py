# A limit of what the activation gives: step3p7.
# block: GatedMLP("Block", limit="limit")
# site: line 10: mlp call-alone: gate_proj
# site: line 11: mlp call-alone: up_proj
# site: line 12: mlp call-alone: down_proj
# skip: line 10: mlp: not a gated MLP: `self.act_fn(self.gate_proj(x)).clamp(max=self.limit)` stands in between

class Block(nn.Module):
    def forward(self, x):
        gate = self.act_fn(self.apply_linear(self.gate_proj, x)).clamp(max=self.limit)
        up = self.apply_linear(self.up_proj, x).clamp(min=-self.limit, max=self.limit)
        return self.apply_linear(self.down_proj, gate * up)
