# Trap: the method may return between the projections.
# block: GatedMLP("Block")
# site: line 11: mlp call-alone: gate_proj
# site: line 14: mlp call-alone: up_proj
# site: line 14: mlp call-alone: down_proj
# skip: line 13: mlp: not a gated MLP: `return` stands between


class Block(nn.Module):
    def forward(self, x):
        gate = self.apply_linear(self.gate_proj, x)
        if self.skip_rest:
            return x
        return self.apply_linear(self.down_proj, self.act_fn(gate) * self.apply_linear(self.up_proj, x))
