# Trap: a temporary is returned too, so it has to be computed.
# block: GatedMLP("Block")
# site: line 11: mlp call-alone: gate_proj
# site: line 12: mlp call-alone: up_proj
# site: line 12: mlp call-alone: down_proj
# skip: line 13: mlp: not a gated MLP: the value of `gate` in `gate = self.act_fn(self.gate_proj(x))` is used elsewhere, too


class Block(nn.Module):
    def forward(self, x):
        gate = self.act_fn(self.apply_linear(self.gate_proj, x))
        down = self.apply_linear(self.down_proj, gate * self.apply_linear(self.up_proj, x))
        return down, gate
