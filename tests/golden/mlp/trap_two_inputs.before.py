# Trap: gate and up read different inputs.
# block: GatedMLP("Block")
# site: line 11: mlp call-alone: gate_proj
# site: line 11: mlp call-alone: up_proj
# site: line 11: mlp call-alone: down_proj
# skip: line 11: mlp: not a gated MLP: `self.up_proj(y)` takes another input than `self.gate_proj(x)`


class Block(nn.Module):
    def forward(self, x, y):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(y))
