# Trap: the activation runs in float32: beam.
# block: GatedMLP("Block")
# site: line 11: mlp call-alone: gate_proj
# site: line 12: mlp call-alone: up_proj
# site: line 14: mlp call-alone: down_proj
# skip: line 13: mlp: not a gated MLP: `(self.act_fn(gate.float()) * up.float()).to(gate.dtype)` stands in between


class Block(nn.Module):
    def forward(self, x):
        gate = self.apply_linear(self.gate_proj, x)
        up = self.apply_linear(self.up_proj, x)
        activated = (self.act_fn(gate.float()) * up.float()).to(gate.dtype)
        return self.apply_linear(self.down_proj, activated)
