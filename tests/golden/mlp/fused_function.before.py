# One projection, split by the function and in one line.
# block: GatedMLP("Block", gate_up="gate_up_proj", activation="activation_fn")
# site: line 8: mlp gated-mlp: gate_up_proj activation_fn down_proj


class Block(nn.Module):
    def forward(self, x):
        gate, up = torch.chunk(self.gate_up_proj(x), 2, dim=-1)
        return self.down_proj(self.activation_fn(gate) * up)
