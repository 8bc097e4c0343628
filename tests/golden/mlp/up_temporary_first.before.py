# A temporary for up only, which is projected before gate.
# block: GatedMLP("Block")
# site: line 8: mlp gated-mlp: up_proj gate_proj act_fn down_proj


class Block(nn.Module):
    def forward(self, x, residual):
        up = self.up_proj(x); residual = residual + 1
        return residual + self.down_proj(self.act_fn(self.gate_proj(x)) * up)
