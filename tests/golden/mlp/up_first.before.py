# The other operand order: up is projected, and draws, first.
# block: GatedMLP("Block", activation="activation_fn")
# site: line 8: mlp gated-mlp: up_proj gate_proj activation_fn down_proj


class Block(nn.Module):
    def forward(self, x):
        return self.down_proj(self.up_proj(x) * self.activation_fn(self.gate_proj(x)))
