# Trap: something is added before down.
# block: GatedMLP("Block")
# site: line 11: mlp call-alone: gate_proj
# site: line 11: mlp call-alone: up_proj
# site: line 12: mlp call-alone: down_proj
# skip: line 12: mlp: not a gated MLP: `x + h` stands in between


class Block(nn.Module):
    def forward(self, x):
        h = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(x + h)
